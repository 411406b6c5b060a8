//! Prompts whose answers every gateway must reproduce exactly.
