//! What the control thread does about trust besides running control: it saves the state, reads descriptors and keys
//! again, and warns before descriptors expire.
//!
//! Every file that is refused is one line in the log. None of them ends the node.

use std::path::PathBuf;
use std::time::Duration;

use control::trust::view::Taken;
use control::trust::{ChainTerms, TrustStatus};
use control::{Control, Event};
use tracing::{info, warn};

use super::expiry::Expiry;
use super::log::Trouble;
use crate::ceremony::{hex, utc};
use crate::config::{ChainFile, ConfigError, Found, TrustFiles, in_words, refusal, replaced, wall_s};

/// Time between two looks at the status of trust.
const LOOK: Duration = Duration::from_millis(250);

pub(super) struct TrustKeeper {
    pub(super) saves: Saves,
    /// A status that is not in the report yet.
    pub(super) status: Option<TrustStatus>,
    files: TrustFiles,
    terms: ChainTerms,
    position: usize,
    /// Names of the hops.
    names: Vec<String>,
    expiry: Expiry,
    look_at: Duration,
}

/// The state file.
#[derive(Default)]
pub(super) struct Saves {
    files: Option<TrustFiles>,
    /// It is an entry's, which runs without it.
    optional: bool,
    trouble: Trouble,
}

impl Saves {
    /// Writes the state. False if it is not on disk.
    pub(super) fn save(&mut self, now: Duration, state: &[u8]) -> bool {
        let Some(files) = &self.files else { return false };
        let Err(why) = files.save(state) else {
            self.trouble.end(now);
            return true;
        };
        if self.trouble.occurs(now) {
            let path = files.state.clone().unwrap_or_default();
            let (path, why) = (path.display(), in_words(&why));
            if self.optional {
                warn!("cannot write the state file {path}: {why}; descriptors are forgotten when this entry ends");
            } else {
                warn!("cannot write the state file {path}: {why}; this node signs nothing until it can");
            }
        }
        false
    }
}

impl TrustKeeper {
    pub(super) fn new(files: TrustFiles, chain: &ChainFile, position: usize, names: Vec<String>) -> TrustKeeper {
        let saves = Saves { files: Some(files.clone()), optional: position == 0, trouble: Trouble::default() };
        TrustKeeper {
            saves,
            status: None,
            files,
            terms: chain.terms.clone(),
            position,
            names,
            expiry: Expiry::default(),
            look_at: Duration::ZERO,
        }
    }

    /// Reads the chain file, the descriptors beside it and the key files again.
    pub(super) fn reload(&mut self, control: &mut Control, now: Duration) {
        let (mut news, mut refused) = (0, 0);
        // Keys first: a descriptor that names them then finds them.
        match self.files.keys() {
            Ok((keys, _)) => control.load_keys(now, keys),
            Err(why) => {
                refused += 1;
                warn!("kept the old keys: {why}");
            }
        }
        let mut all: Vec<(PathBuf, Result<_, ConfigError>)> = Vec::new();
        let path = self.files.chain.clone().unwrap_or_default();
        match self.files.chain() {
            Ok(Some(chain)) if chain.id == self.terms.id() => {
                all.extend(chain.descriptors.into_iter().map(|descriptor| (path.clone(), Ok(descriptor))));
            }
            Ok(Some(chain)) => {
                refused += 1;
                warn!(
                    "{} has become another chain, {}: this node stays in its chain until it is started again; put the old file \
                     back, or start all nodes of the chain again",
                    path.display(),
                    hex(&chain.id)
                );
            }
            Ok(None) => {}
            Err(why) => {
                refused += 1;
                warn!("kept the old chain file: {why}");
            }
        }
        all.extend(self.files.descriptors_beside());
        for (path, descriptor) in all {
            let content = descriptor.as_ref().ok().map(|descriptor| (descriptor.revision, descriptor.not_after));
            let identities = &self.terms.identities;
            let position = |identity: &[u8; 32]| identities.iter().position(|one| one == identity).map(|at| at + 1);
            match Found::take(descriptor, position, |_, descriptor| control.load_descriptor(now, descriptor)) {
                Found::Taken { hop, taken } => {
                    let (name, (revision, until)) = (&self.names[hop - 1], content.unwrap_or_default());
                    let (file, until) = (path.display(), utc(until));
                    match taken {
                        Taken::New => {
                            news += 1;
                            info!(
                                peer = name,
                                "took the descriptor of {name} in {file}: revision {revision}, valid until {until}"
                            );
                        }
                        Taken::Earlier => info!(
                            peer = name,
                            "kept the descriptor of {name} in {file}: revision {revision} is not the newest, valid until {until}"
                        ),
                        Taken::Known => {}
                    }
                }
                Found::Revoked { hop, why } => match control.view().descriptor(hop) {
                    Some(newest) => {
                        info!(peer = self.names[hop - 1], "{}", replaced(&path, &self.names[hop - 1], newest.revision))
                    }
                    None => {
                        refused += 1;
                        warn!("{}", refusal(&path, &why));
                    }
                },
                Found::Refused(why) => {
                    refused += 1;
                    warn!("{}", refusal(&path, &why));
                }
            }
        }
        info!(news, refused, "reloaded: {news} new, {refused} refused");
        self.settle_keys(control, now);
    }

    /// True for the news that this node has another descriptor.
    pub(super) fn concerns_own_descriptor(&self, event: &Event) -> bool {
        use control::trust::hop::TrustEvent;
        matches!(event, Event::Trust(TrustEvent::Descriptor { hop, .. }) if *hop == self.position)
    }

    /// Moves key files to where the node's descriptors put them.
    pub(super) fn settle_keys(&mut self, control: &mut Control, now: Duration) {
        if self.position == 0 {
            return;
        }
        match self.files.settle_keys(control.view(), self.position) {
            Ok(done) if done.is_empty() => {}
            Ok(done) => {
                done.iter().for_each(|line| info!("{line}"));
                if let Ok((keys, _)) = self.files.keys() {
                    control.load_keys(now, keys);
                }
            }
            Err(why) => warn!("cannot put the new keys in place: {why}"),
        }
    }

    /// Takes the status of trust now and then, and warns of what it says. Returns when to look again, if that is soon.
    pub(super) fn look(&mut self, control: &Control, now: Duration) -> Duration {
        if now < self.look_at {
            return self.look_at;
        }
        self.look_at = now + LOOK;
        let status = control.trust_status(now);
        self.expiry.check(&status, wall_s(), self.position, &self.names);
        self.status = Some(status);
        Duration::MAX
    }
}
