//! Says what a public file contains: who, where, until when, and the fingerprints that people compare.

use std::path::Path;

use control::trust::{NodeDescriptor, SignedDescriptor};
use serde_json::{Value, json};
use wire::paced::PacedTerms;
use wire::setup::Suite;

use super::files::{DescriptorFile, Renewable, node_role, public};
use super::words::{fingerprint, hex, places_and_lanes, state, utc};
use crate::config::{ChainFile, ConfigError, node_name};
use crate::figures::{Figures, PerUse};

/// A public file, verified as far as it is signed.
#[derive(Clone, Debug)]
pub enum PublicFile {
    Descriptor(SignedDescriptor),
    Request(NodeDescriptor),
    Chain(ChainFile),
}

impl PublicFile {
    /// Reads a `node.desc`, a `node.request` or an assembled `chain.toml`, whatever its name.
    ///
    /// # Errors
    /// The first mistake, with its remedy.
    pub fn read(path: &Path, now_s: u64) -> Result<PublicFile, ConfigError> {
        let source = public(path, "check the path: inspect reads node.desc, node.request and chain.toml")?;
        let other = |what: &str, remedy: &str| {
            Err(ConfigError::Value { at: source.file(), what: what.to_owned(), remedy: remedy.to_owned() })
        };
        let names = source.names()?;
        let has = |wanted: &[&str]| names.iter().any(|name| wanted.contains(&name.as_str()));
        if has(&["id", "hop", "interval_s", "epoch_s"]) {
            ChainFile::check(&source, path, now_s).map(PublicFile::Chain)
        } else if has(&["descriptor"]) {
            DescriptorFile::check(&source).map(|file| PublicFile::Descriptor(file.descriptor))
        } else if has(&["request"]) {
            Renewable::check_request(&source).map(|request| PublicFile::Request(request.content))
        } else if has(&["identity", "noise", "signing"]) {
            other("this file holds private keys", "inspect node.desc instead, which is public")
        } else if has(&["role", "status"]) {
            let remedy = format!("check it with `eddy config check {}`", path.display());
            other("this is a node's configuration, which is not signed", &remedy)
        } else {
            other("this is not a public file of eddy", "name a node.desc, a node.request or a chain.toml")
        }
    }

    /// Its content in words.
    pub fn text(&self, path: &Path, now_s: u64) -> String {
        let path = path.display();
        match self {
            PublicFile::Descriptor(descriptor) => {
                let role = node_role(descriptor.role).with_article();
                format!("{path}: descriptor of {role}, signed by its identity\n\n{}", node_text(descriptor, now_s))
            }
            PublicFile::Request(content) => {
                let role = node_role(content.role).with_article();
                format!(
                    "{path}: request of {role} for new keys, not signed: compare noise and signing\n\n{}",
                    node_text(content, now_s)
                )
            }
            PublicFile::Chain(chain) => {
                format!("{path}: {}\n\n{}", chain_summary(chain), chain_text(chain, now_s))
            }
        }
    }

    /// The same for scripts. Times are seconds since 1970, keys are in hex.
    pub fn json(&self, now_s: u64) -> Value {
        match self {
            PublicFile::Descriptor(descriptor) => with_kind("descriptor", node_json(descriptor, now_s)),
            PublicFile::Request(content) => with_kind("request", node_json(content, now_s)),
            PublicFile::Chain(chain) => with_kind("chain", chain_json(chain, now_s)),
        }
    }
}

fn with_kind(kind: &str, mut value: Value) -> Value {
    value["kind"] = kind.into();
    value
}

fn row(head: &str, text: &str) -> String {
    format!("  {head:<11}  {text}\n")
}

/// Lines about a node.
fn node_text(descriptor: &NodeDescriptor, now_s: u64) -> String {
    let mut text = row("identity", &fingerprint(&descriptor.identity));
    for contact in &descriptor.contacts {
        text += &row(&format!("class {}", contact.class), &places_and_lanes(contact));
    }
    text += &row("valid from", &utc(descriptor.not_before));
    text += &row("valid until", &validity(descriptor, now_s));
    text += &row("revision", &format!("{}{}", descriptor.revision, revoked(descriptor)));
    text += &row("noise", &fingerprint(&descriptor.noise));
    text + &row("signing", &fingerprint(&descriptor.signing))
}

fn validity(descriptor: &NodeDescriptor, now_s: u64) -> String {
    format!("{} ({})", utc(descriptor.not_after), state(descriptor.validity(now_s)))
}

fn revoked(descriptor: &NodeDescriptor) -> String {
    match descriptor.floor {
        0 => String::new(),
        floor => format!(" (those below {floor} are revoked)"),
    }
}

fn chain_summary(chain: &ChainFile) -> String {
    let mixes = chain.descriptors.len() - 1;
    format!("chain of {mixes} mix{} and an exit", if mixes == 1 { "" } else { "es" })
}

fn chain_text(chain: &ChainFile, now_s: u64) -> String {
    let terms = &chain.terms;
    let suite = match terms.suite {
        Suite::X25519 => "1 (X25519 alone)",
        Suite::Hybrid => "2 (X25519 with ML-KEM-768)",
    };
    let mut text = row("fingerprint", &fingerprint(&chain.id));
    text += &row("id", &hex(&chain.id));
    text += &row("suite", suite);
    text += &row("interval", &format!("{} s", terms.interval_s));
    text += &row("epoch", &format!("{} s", terms.epoch_s));
    for class in &terms.classes {
        let line = format!("mixing delay at most {} ms, channels of {} s", class.mixing_delay_ms, class.lifetime_s);
        text += &row(&format!("class {}", class.class), &line);
    }
    for class in &terms.paced {
        text += &paced_text(class, Figures::of(class, terms.suite, chain.descriptors.len()));
    }
    for (i, descriptor) in chain.descriptors.iter().enumerate() {
        let name = node_name(chain.role(i + 1), i + 1);
        text += &format!("\n{name}\n");
        text += &row("identity", &fingerprint(&descriptor.identity));
        for contact in &descriptor.contacts {
            text += &row(&format!("class {}", contact.class), &places_and_lanes(contact));
        }
        text += &row("valid until", &validity(descriptor, now_s));
    }
    text
}

/// Lines about a paced class.
fn paced_text(terms: &PacedTerms, figures: Figures) -> String {
    let plural = if terms.cells == 1 { "" } else { "s" };
    let repeat = if terms.repeat { ", with repeat" } else { "" };
    let steps = terms.steps_ms.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let head = format!("{}: {} cell{plural} every {} ms{repeat}", terms.class, terms.cells, terms.period_ms);
    let sizes = format!("{} rounds in a batch, {} copies, gap {}", terms.rounds, terms.copies, terms.gap);
    let users = format!("{} to {} users, loops {}", terms.n_min, terms.seats, terms.loops);
    let times = format!("slack {} ms, steps {steps} ms", terms.slack_ms);
    let mut text = row(&format!("class {}", terms.name), &head);
    [sizes, users, times].iter().for_each(|line| text += &row("", line));
    for (does, how_much) in figures.lines() {
        text += &row(&format!("  {does}"), &how_much);
    }
    text
}

fn node_json(descriptor: &NodeDescriptor, now_s: u64) -> Value {
    let contact = |contact: &control::trust::Contact| {
        let names: Vec<String> = contact.names.iter().map(|(name, port)| format!("{name}:{port}")).collect();
        let addresses: Vec<String> = contact.addresses.iter().map(ToString::to_string).collect();
        json!({ "class": contact.class.to_string(), "lanes": contact.lanes, "addresses": addresses, "names": names })
    };
    let state = match descriptor.validity(now_s) {
        control::trust::Validity::NotYet(_) => "not yet valid",
        control::trust::Validity::Valid(_) => "valid",
        control::trust::Validity::Expired(_) => "expired",
    };
    json!({
        "role": node_role(descriptor.role),
        "identity": hex(&descriptor.identity),
        "fingerprint": fingerprint(&descriptor.identity),
        "noise": hex(&descriptor.noise),
        "signing": hex(&descriptor.signing),
        "revision": descriptor.revision,
        "floor": descriptor.floor,
        "not_before": descriptor.not_before,
        "not_after": descriptor.not_after,
        "state": state,
        "classes": descriptor.contacts.iter().map(contact).collect::<Vec<_>>(),
    })
}

fn chain_json(chain: &ChainFile, now_s: u64) -> Value {
    let terms = &chain.terms;
    let class = |class: &control::trust::ClassTerms| {
        json!({
            "class": class.class.name(),
            "mixing_delay_ms": class.mixing_delay_ms,
            "lifetime_s": class.lifetime_s,
        })
    };
    let per_use = |of: PerUse<u64>| json!({ "forward": of.forward, "backward": of.backward, "meeting": of.meeting });
    let paced = |class: &PacedTerms| {
        let figures = Figures::of(class, terms.suite, chain.descriptors.len());
        json!({
            "class": class.class.to_string(),
            "name": class.name,
            "period_ms": class.period_ms,
            "cells": class.cells,
            "rounds": class.rounds,
            "copies": class.copies,
            "gap": class.gap,
            "repeat": u8::from(class.repeat),
            "n_min": class.n_min,
            "seats": class.seats,
            "loops": class.loops,
            "slack_ms": class.slack_ms,
            "steps_ms": class.steps_ms,
            "kbit_s": per_use(figures.kbit_s),
            "mb_per_hour": figures.mb_per_hour,
            "peak_kbit_s": figures.peak_kbit_s,
            "delay_ms": per_use(figures.delay_ms),
            "batch_ms": figures.batch_ms,
        })
    };
    json!({
        "id": hex(&chain.id),
        "fingerprint": fingerprint(&chain.id),
        "suite": terms.suite as u8,
        "interval_s": terms.interval_s,
        "epoch_s": terms.epoch_s,
        "classes": terms.classes.iter().map(class).collect::<Vec<_>>(),
        "paced": terms.paced.iter().map(paced).collect::<Vec<_>>(),
        "hops": chain.descriptors.iter().map(|descriptor| node_json(descriptor, now_s)).collect::<Vec<_>>(),
    })
}
