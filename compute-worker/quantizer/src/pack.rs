//! From a source to a bundle, by a recipe.
