//! This host's /proc and /sys, read where they are to be had: in a container much of it is not.

#[cfg(test)]
use std::path::Path;
use std::path::PathBuf;
use std::str::FromStr;

/// The two trees, under a root that tests may choose.
pub struct Host(PathBuf);

impl Host {
    /// This host's.
    pub fn real() -> Host {
        Host(PathBuf::from("/"))
    }

    /// A host of files under `root`.
    #[cfg(test)]
    pub fn under(root: &Path) -> Host {
        Host(root.to_owned())
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    /// A file's text without the white space around it.
    pub fn text(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.path(path)).ok().map(|text| text.trim().to_owned())
    }

    /// A file that holds a number.
    pub fn number<T: FromStr>(&self, path: &str) -> Option<T> {
        self.text(path)?.parse().ok()
    }

    /// A file that holds a list of cores or the like, such as `0-3,8`.
    pub fn list(&self, path: &str) -> Option<Vec<usize>> {
        list(&self.text(path)?)
    }

    /// The names in a folder, sorted; none if it is not there.
    pub fn names(&self, folder: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(folder)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }
}

/// Reads `0-3,8`. What is no list, or one that nobody could mean, is none.
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

/// The other way: `0-3,8`.
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
    fn lists_of_cores_are_read_and_written() {
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
    fn what_a_host_does_not_have_is_none() {
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
