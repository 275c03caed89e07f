//! stub
/// stub
/// # Errors
/// stub
pub fn run(_: &crate::cli::ChainArgs) -> anyhow::Result<()> {
    Ok(())
}
