//! Integration tests: one binary, a module per topic.

mod aead;
mod known_answer;
mod paced;
mod uiv;
mod vectors;
