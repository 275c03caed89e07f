# Shortcuts for the commands of README.md and CONTRIBUTING.md. `just` lists them.

_default:
    @just --list --unsorted

# All tests; `just test -p wire` for one crate
test *ARGS='--workspace':
    cargo test {{ ARGS }}

# Format and lints, without tests
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings

# What a cell costs a mix; `just bench path`, `just bench capacity`, ...
bench *ARGS='hop --rows quick':
    cargo run --release -p eddy-bench -- {{ ARGS }}

# A whole chain on this machine, with an account of every packet
chain *ARGS:
    cargo run --release -- chain {{ ARGS }}

# Everything that must hold before a change lands
ci:
    .ci/run
