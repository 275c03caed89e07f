//! This host's /proc and /sys. In a container many files are missing: each reads as `None`.

#[cfg(test)]
use std::path::Path;
use std::path::PathBuf;
use std::str::FromStr;

/// The two trees, below a root that tests choose.
pub struct Host(PathBuf);

impl Host {
    pub fn real() -> Host {
        Host(PathBuf::from("/"))
    }

    /// Files below `root` instead.
    #[cfg(test)]
    pub fn under(root: &Path) -> Host {
        Host(root.to_owned())
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    /// A file's text, trimmed.
    pub fn text(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.path(path)).ok().map(|text| text.trim().to_owned())
    }

    pub fn number<T: FromStr>(&self, path: &str) -> Option<T> {
        self.text(path)?.parse().ok()
    }

    /// A file with a list such as `0-3,8`.
    pub fn list(&self, path: &str) -> Option<Vec<usize>> {
        list(&self.text(path)?)
    }

    /// The sorted names in a folder; empty if it does not exist.
    pub fn names(&self, folder: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(folder)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }
}

/// Parses `0-3,8`. `None` for other text, or numbers that cannot be cores.
fn list(text: &str) -> Option<Vec<usize>> {
    let mut all = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if last >= 1 << 16 {
            return None;
        }
        all.extend(first..=last);
    }
    Some(all)
}

/// Formats a list as `0-3,8`.
pub fn in_short(cores: &[usize]) -> String {
    let mut text = String::new();
    let mut i = 0;
    while i < cores.len() {
        let first = i;
        while i + 1 < cores.len() && cores[i + 1] == cores[i] + 1 {
            i += 1;
        }
        let comma = if text.is_empty() { "" } else { "," };
        text += &match i - first {
            0 => format!("{comma}{}", cores[i]),
            _ => format!("{comma}{}-{}", cores[first], cores[i]),
        };
        i += 1;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cores_round_trip() {
        for (text, cores) in [("0", vec![0]), ("0-3,8", vec![0, 1, 2, 3, 8]), ("1,3", vec![1, 3]), ("", vec![])] {
            assert_eq!(list(text), Some(cores.clone()), "{text}");
            assert_eq!(in_short(&cores), text);
        }
        for nonsense in ["a", "1-", "0-99999999999", "-1"] {
            assert_eq!(list(nonsense), None, "{nonsense}");
        }
        assert_eq!(list("3-1"), Some(vec![]));
    }

    #[test]
    fn missing_files_are_none() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("proc/sys/net/core")).unwrap();
        std::fs::write(root.path().join("proc/sys/net/core/rmem_max"), "212992\n").unwrap();
        let host = Host::under(root.path());
        assert_eq!(host.number::<usize>("/proc/sys/net/core/rmem_max"), Some(212_992));
        assert_eq!(host.number::<usize>("/proc/sys/net/core/wmem_max"), None);
        assert_eq!(host.names("/proc/sys/net/core"), ["rmem_max"]);
        assert!(host.names("/sys/class/net").is_empty());
    }
}
