//! The hops of a chain: their keys and descriptors, also for chains of free classes.

use control::draw::{draw_secret, draw_x25519};
use control::trust::hop::HopState;
use control::trust::{ChainTerms, Contact, HopRole, NodeDescriptor, SignedDescriptor, Signer, View};
use control::{NodeKeys, TrustSetup};
use rand_chacha::ChaCha20Rng;
use wire::kdf::Secret;

use super::START_S;

/// Hops with keys that were drawn, Mix 1 first.
pub struct Hops {
    pub terms: ChainTerms,
    descriptors: Vec<SignedDescriptor>,
    /// Noise and signing keys.
    keys: Vec<(Secret, Secret)>,
}

impl Hops {
    /// A hop with each of these contacts, in a chain with these terms, to which their identities are added.
    pub fn draw(mut terms: ChainTerms, contacts: Vec<Contact>, rng: &mut ChaCha20Rng) -> Hops {
        let hops = contacts.len();
        let hop = |(hop, contact)| {
            let identity = Signer::from_seed(&draw_secret(rng));
            let ((noise, public), signing) = (draw_x25519(rng), draw_secret(rng));
            let descriptor = NodeDescriptor {
                role: if hop == hops { HopRole::Exit } else { HopRole::Mix },
                revision: 1,
                floor: 0,
                not_before: START_S - 10,
                not_after: START_S + 1_000_000,
                identity: identity.public(),
                noise: public,
                signing: Signer::from_seed(&signing).public(),
                contacts: vec![contact],
            };
            (descriptor.sign(&identity).expect("a good descriptor"), (noise, signing))
        };
        let (descriptors, keys): (Vec<_>, Vec<_>) = (1..).zip(contacts).map(hop).unzip();
        terms.identities = descriptors.iter().map(|descriptor| descriptor.identity).collect();
        Hops { terms, descriptors, keys }
    }

    /// What the control of a node starts with: of a hop, from 1, or of an entry, 0.
    pub fn trust(&self, position: usize, state: HopState) -> TrustSetup {
        let mut view = View::new(self.terms.clone());
        for (hop, descriptor) in (1..).zip(&self.descriptors) {
            view.take_descriptor(hop, descriptor.clone(), START_S).expect("its own descriptor");
        }
        let own = position.checked_sub(1).map(|hop| &self.keys[hop]);
        let own = own.map(|(noise, signing)| NodeKeys { noise: noise.clone(), signer: Signer::from_seed(signing) });
        TrustSetup { view, keys: own.into_iter().collect(), state }
    }
}
