//! Prompts with known answers.
