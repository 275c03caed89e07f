//! Makes the public file of a chain from the descriptors of its nodes. It needs no secret, so anyone can do it.

use std::net::SocketAddr;
use std::path::PathBuf;

use control::trust::chain::{BadTerms, EPOCH_MAX_S};
use control::trust::{ChainTerms, ClassTerms, HopRole, Validity};
use dataplane::stage::pool::Mixing;
use wire::cell::{Class, Shape};
use wire::ids::ClassId;
use wire::paced::PacedTerms;
use wire::paced::terms::{BadPacedTerms, PERIOD_MS};
use wire::setup::Suite;

use super::files::{DescriptorFile, refuse_existing};
use super::profile::{ClassChoice, for_hops, in_order};
use super::words::{fingerprint, span, utc};
use crate::config::{ChainFile, ConfigError, LIFETIME_S, check_fits};
use crate::init::create;

/// Seconds between two bundles unless chosen otherwise, or a paced class needs more.
pub const INTERVAL_S: u32 = 10;
/// Seconds of an epoch unless chosen otherwise.
pub const EPOCH_S: u32 = 3600;

/// A planned chain.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Descriptors of the mixes, Mix 1 first.
    pub mixes: Vec<PathBuf>,
    pub exit: PathBuf,
    /// The chain file to write.
    pub out: PathBuf,
    pub suite: Suite,
    /// None: [`INTERVAL_S`], or the least that its paced classes need.
    pub interval_s: Option<u32>,
    pub epoch_s: u32,
    pub classes: Vec<ClassChoice>,
    /// Of all free classes.
    pub mixing_delay_ms: u32,
    /// Of all free classes.
    pub lifetime_s: u16,
    /// Overwrite an existing file.
    pub force: bool,
}

impl Plan {
    /// A chain with all defaults.
    pub fn new(mixes: Vec<PathBuf>, exit: PathBuf, out: PathBuf) -> Plan {
        Plan {
            mixes,
            exit,
            out,
            suite: Suite::default(),
            interval_s: None,
            epoch_s: EPOCH_S,
            classes: vec![ClassChoice::Free(Class::L)],
            mixing_delay_ms: default_mixing_delay_ms(),
            lifetime_s: LIFETIME_S,
            force: false,
        }
    }
}

/// The longest delay of the default mixing strategy.
pub fn default_mixing_delay_ms() -> u32 {
    Mixing::default().largest_delay().as_nanos().div_ceil(1_000_000) as u32
}

/// Checks all descriptors and writes the chain file.
///
/// # Errors
/// The first descriptor that does not fit, a term out of range, or a file that cannot be written.
pub fn assemble(plan: &Plan, now_s: u64) -> Result<ChainFile, ConfigError> {
    let paths = plan.mixes.iter().chain([&plan.exit]);
    let hops = paths.map(|path| DescriptorFile::read(path)).collect::<Result<Vec<_>, _>>()?;
    let choices = in_order(&plan.classes)?;
    let classes: Vec<ClassId> = choices.iter().map(|choice| choice.id()).collect();
    for (i, hop) in hops.iter().enumerate() {
        check_role(hop, i + 1, hops.len())?;
        check_validity(hop, now_s)?;
        check_unlike(hop, &hops[..i], &classes)?;
        check_classes(hop, &classes)?;
    }

    let terms = terms(plan, &choices, &hops)?;
    for class in &terms.classes {
        check_length(class.class, &hops)?;
    }

    let descriptors = hops.into_iter().map(|hop| hop.descriptor).collect();
    let text = ChainFile { id: terms.id(), terms, descriptors }.text();
    // Whatever is written must load.
    let chain = ChainFile::parse(&plan.out, &text, now_s)?;
    if !plan.force {
        refuse_existing(
            std::slice::from_ref(&plan.out),
            "choose another file with --out, or overwrite it with --force",
        )?;
    }
    create(&plan.out, text.as_bytes(), 0o644)?;
    Ok(chain)
}

/// Seconds between two bundles, unless chosen otherwise, in a chain of `hops` hops with these paced classes.
pub fn interval_s(paced: &[PacedTerms], hops: usize) -> u32 {
    // A period out of range is refused as such.
    let sound = paced.iter().filter(|terms| PERIOD_MS.contains(&terms.period_ms));
    let needed_s = sound.map(|terms| terms.interval_ms_min(hops).div_ceil(1000) as u32);
    needed_s.fold(INTERVAL_S, u32::max)
}

/// The terms of a chain of these hops.
fn terms(plan: &Plan, choices: &[&ClassChoice], hops: &[DescriptorFile]) -> Result<ChainTerms, ConfigError> {
    let (mut classes, mut paced) = (Vec::new(), Vec::new());
    for choice in choices {
        match choice {
            ClassChoice::Free(class) => classes.push(ClassTerms {
                class: *class,
                mixing_delay_ms: plan.mixing_delay_ms,
                lifetime_s: plan.lifetime_s,
            }),
            ClassChoice::Paced(terms) => paced.push(for_hops(terms.clone(), hops.len())),
        }
    }
    let interval_s = plan.interval_s.unwrap_or_else(|| interval_s(&paced, hops.len()));
    let identities = hops.iter().map(|hop| hop.descriptor.identity).collect();
    let terms = ChainTerms { suite: plan.suite, interval_s, epoch_s: plan.epoch_s, classes, paced, identities };
    let checked = terms.check();
    checked.map_err(|why| {
        ConfigError::Arguments(match why {
            BadTerms::Epoch { epoch_s, least_s } => format!(
                "invalid --epoch \"{epoch_s}\": expected at least {least_s}, ten times --interval {interval_s}, and at \
                 most {EPOCH_MAX_S}"
            ),
            BadTerms::Paced(name, BadPacedTerms::Interval { least_ms, .. }) => format!(
                "invalid --interval \"{interval_s}\": expected at least {}, because setup keys reach users of class \
                 {name} in the cells that its rounds have for them",
                least_ms.div_ceil(1000)
            ),
            BadTerms::Paced(name, why) => format!("invalid --class \"{name}\": {why}"),
            other => other.to_string(),
        })
    })?;
    Ok(terms)
}

fn wrong(hop: &DescriptorFile, what: String, remedy: &str) -> ConfigError {
    ConfigError::Value { at: hop.at.clone(), what, remedy: remedy.to_owned() }
}

fn check_role(hop: &DescriptorFile, position: usize, hops: usize) -> Result<(), ConfigError> {
    match (hop.descriptor.role, position == hops) {
        (HopRole::Exit, false) => {
            Err(wrong(hop, format!("hop {position} must be a mix, but this is an exit"), "name it with --exit"))
        }
        (HopRole::Mix, true) => {
            Err(wrong(hop, "--exit must be an exit, but this is a mix".into(), "name it before --exit, in its order"))
        }
        _ => Ok(()),
    }
}

fn check_validity(hop: &DescriptorFile, now_s: u64) -> Result<(), ConfigError> {
    let descriptor = &hop.descriptor;
    match descriptor.validity(now_s) {
        Validity::Valid(_) => Ok(()),
        Validity::NotYet(seconds) => Err(wrong(
            hop,
            format!("the descriptor is not valid before {}, in {}", utc(descriptor.not_before), span(seconds)),
            "check this host's clock with `date -u`, or ask the node's operator to check theirs and renew it",
        )),
        Validity::Expired(seconds) => Err(wrong(
            hop,
            format!("the descriptor expired on {}, {} ago", utc(descriptor.not_after), span(seconds)),
            "ask the node's operator for a new one, made with `eddy renew`",
        )),
    }
}

/// Checks that a hop shares neither identity, keys nor an address with an earlier one.
fn check_unlike(hop: &DescriptorFile, earlier: &[DescriptorFile], classes: &[ClassId]) -> Result<(), ConfigError> {
    let own = &hop.descriptor;
    for other in earlier {
        let (theirs, file) = (&other.descriptor, other.at.path.display());
        if theirs.identity == own.identity {
            let what = format!("the identity {} is also that of {file}", fingerprint(&own.identity));
            return Err(wrong(hop, what, "name each node once: each hop of a chain needs its own identity"));
        }
        for (kind, ours, key) in [("Noise", &own.noise, &theirs.noise), ("signing", &own.signing, &theirs.signing)] {
            if ours == key {
                let what = format!("the {kind} key {} is also that of {file}", fingerprint(key));
                return Err(wrong(hop, what, "ask both operators which of them has it; the other needs new keys"));
            }
        }
        for class in classes {
            let is_local = |file: &DescriptorFile| {
                let contact = file.descriptor.contact(*class)?;
                let is_loopback = |address: &SocketAddr| address.ip().to_canonical().is_loopback();
                (contact.names.is_empty()).then(|| contact.addresses.iter().all(is_loopback))
            };
            let (local, there) = match (is_local(hop), is_local(other)) {
                (Some(true), Some(false)) => (Some(hop), file.to_string()),
                (Some(false), Some(true)) => (Some(other), hop.at.path.display().to_string()),
                _ => (None, String::new()),
            };
            if let Some(local) = local {
                let what = format!("it has loopback addresses alone, which the host of {there} does not reach");
                return Err(wrong(
                    local,
                    what,
                    "ask its operator for one with its public address, made with `eddy renew`",
                ));
            }
            let addresses = |file: &DescriptorFile| -> Vec<SocketAddr> {
                file.descriptor.contact(*class).map(|contact| contact.addresses.clone()).unwrap_or_default()
            };
            let taken = addresses(other);
            if let Some(address) = addresses(hop).iter().find(|address| taken.contains(address)) {
                let what = format!("the address {address} is also that of {file}");
                return Err(wrong(hop, what, "each hop needs an address of its own: ask both operators"));
            }
        }
    }
    Ok(())
}

fn check_classes(hop: &DescriptorFile, classes: &[ClassId]) -> Result<(), ConfigError> {
    let Some(missing) = classes.iter().find(|class| hop.descriptor.contact(**class).is_none()) else { return Ok(()) };
    let has: Vec<String> = hop.descriptor.contacts.iter().map(|contact| contact.class.to_string()).collect();
    let what = format!("the node has no address for class {missing}, only for {}", has.join(" and "));
    Err(wrong(hop, what, "choose its class with --class, or ask its operator for a node with this class"))
}

/// Refuses cells of a free class that do not fit a path of 1500 bytes.
fn check_length(class: Class, hops: &[DescriptorFile]) -> Result<(), ConfigError> {
    let shape = Shape::new(class, hops.len()).map_err(|why| ConfigError::Arguments(why.to_string()))?;
    let contacts = hops.iter().filter_map(|hop| hop.descriptor.contact(class));
    let ipv6 = contacts.flat_map(|contact| &contact.addresses).any(SocketAddr::is_ipv6);
    check_fits(shape, ipv6).map_err(|why| match why {
        ConfigError::TooLong { class, mixes, family, cell, limit, fits, smaller } => ConfigError::Arguments(format!(
            "class {class} with {mixes} mixes needs datagrams of {cell} bytes, but over {family} only {limit} fit: use \
             at most {fits} mixes, or --class {smaller}"
        )),
        other => other,
    })
}
