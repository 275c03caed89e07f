//! Integration tests: one binary, a module per topic.

mod aead;
mod known_answer;
mod uiv;
mod vectors;
