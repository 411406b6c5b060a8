//! Streams made here, word by word, against loops that know nothing of tiles, surfaces and banks.

mod convolutions;
mod hostile;
mod state;
mod stream;
