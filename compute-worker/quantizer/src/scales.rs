//! Search of scales and multipliers.
