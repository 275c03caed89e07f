//! Configuration by operators. The first byte selects the kind of the rest: `n` node file, `c` chain file,
//! `k` key file, `u` file of SOCKS users, `d` destination, `l` listen address, `f` forward. Every error is one line
//! that starts with the file name, and no error about a file of secrets shows one.

#![no_main]

use std::path::Path;

use dataplane::entry::Destination;
use eddy_fuzz::WALL_S;
use eddy_node::ceremony::files::NodeKeys;
use eddy_node::config::{ChainFile, ConfigError, Forward, NodeConfig, NodeRole, Part, parse_listen, parse_users};
use libfuzzer_sys::fuzz_target;

/// A key in the seeds' key file. It must not appear in an error message.
const SECRET: &str = "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY";

fn complain(path: &Path, why: &ConfigError) {
    let text = why.to_string();
    assert_eq!(text.lines().count(), 1, "{text:?}");
    assert!(text.starts_with(&path.display().to_string()) && text.contains(": "), "{text:?}");
}

fn node(path: &Path, text: &str) {
    let config = match NodeConfig::parse(path, text) {
        Ok(config) => config,
        Err(why) => return complain(path, &why),
    };
    assert!(config.window.is_power_of_two() && (64..=65536).contains(&config.window));
    assert!((4096..=1 << 30).contains(&config.receive_buffer));
    assert!((1..=3600).contains(&config.renew_after.as_secs()) && config.expire_after() > config.renew_after);
    assert_eq!(config.path, path);
    assert_eq!(config.up.is_none() && config.role() != NodeRole::Entry, false, "hops have an up side");
    if let Some(next) = &config.next {
        assert!(config.role() != NodeRole::Exit && next.parse::<Destination>().is_ok());
    }
    match config.part {
        Part::Entry(entry) => {
            assert!((1..=256).contains(&entry.channels) && !entry.flow_idle.is_zero());
            for (i, forward) in entry.forwards.iter().enumerate() {
                let same = |other: &Forward| other.listen == forward.listen && forward.listen.port() != 0;
                assert!(!entry.forwards[..i].iter().any(same), "two forwards at one place");
            }
        }
        Part::Mix { mixing, .. } => assert_eq!(mixing.to_string().parse(), Ok(mixing)),
        Part::Exit(exit) => {
            assert!((1..=65536).contains(&exit.max_flows_per_channel));
            assert!((1..=1_000_000).contains(&exit.max_sockets));
            exit.allow.iter().for_each(|net| assert_eq!(net.to_string().parse().as_ref(), Ok(net)));
        }
    }
}

fn chain(path: &Path, text: &str) {
    let chain = match ChainFile::parse(path, text, WALL_S) {
        Ok(chain) => chain,
        Err(why) => return complain(path, &why),
    };
    assert_eq!((chain.terms.check(), chain.terms.id()), (Ok(()), chain.id));
    for (i, (descriptor, identity)) in chain.descriptors.iter().zip(&chain.terms.identities).enumerate() {
        let role = NodeRole::at(i + 1, chain.descriptors.len());
        assert_eq!((&descriptor.identity, Some(chain.role(i + 1))), (identity, role));
        assert!(chain.terms.class_ids().all(|class| descriptor.contact(class).is_some()));
    }
    assert_eq!(ChainFile::parse(path, &chain.text(), WALL_S).expect("it is written as it was read"), chain);
}

/// A file of secrets that is refused.
fn secret(path: &Path, why: &ConfigError) {
    complain(path, why);
    // Names of keys are not secret. A secret in the place of a name is published by its author.
    let unknown = matches!(why, ConfigError::UnknownKey { .. });
    let shown = SECRET.as_bytes().windows(12).any(|part| {
        let part = std::str::from_utf8(part).expect("it is ASCII");
        why.to_string().contains(part)
    });
    assert!(unknown || !shown, "{why}");
}

fuzz_target!(|input: &str| {
    let mut chars = input.chars();
    let Some(kind) = chars.next() else { return };
    let text = chars.as_str();
    let path = Path::new("dir/file.toml");
    let told = |why: String| assert!(why.contains(": ") && why.lines().count() == 1, "{why:?}");
    match kind {
        'n' => node(path, text),
        'c' => chain(path, text),
        'k' => _ = NodeKeys::parse(path, text).map_err(|why| secret(path, &why)),
        'u' => _ = parse_users(path, text).map_err(|why| secret(path, &why)),
        'd' => match text.parse::<Destination>() {
            Ok(to) => assert_eq!(to.to_string().parse(), Ok(to)),
            Err(why) => told(why.to_string()),
        },
        'l' => match parse_listen(text) {
            Ok(at) => assert_eq!(parse_listen(&at.to_string()), Ok(at)),
            Err(why) => told(why),
        },
        'f' => match text.parse::<Forward>() {
            Ok(forward) => {
                assert_eq!(format!("{}={}", forward.listen, forward.to).parse(), Ok(forward));
            }
            Err(why) => told(why),
        },
        _ => {}
    }
});
