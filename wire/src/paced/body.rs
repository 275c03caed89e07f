//! Bodies of paced data cells: one wide-block layer per hop, and an inner body that only the ends can read (SPEC 9.3).
//!
//! Forward the entry deciphers for each hop and the hops encipher; backward the hops encipher and the entry deciphers.
//! A hop authenticates nothing, so a damaged body becomes a random one behind it. Mixes pass whole releases to
//! [`crate::gcm::encipher_batch`]; an entry has few cells in a round and works on one at a time.

use arrayvec::ArrayVec;

use super::Call;
use crate::cell::{Class, Direction, MAX_HOPS, TAG_LEN};
use crate::gcm::{AeadKey, Job, Prepared, UIV_KEY_LEN, UivKey, open_batch, seal_batch};
use crate::kdf::{Secret, expand};
use crate::setup::HopSecrets;

/// Longest body: that of class L.
const BODY_LEN_MAX: usize = Class::L.payload() + TAG_LEN;

/// Names a cell of a channel and direction. Nobody enciphers two bodies, or seals two texts, for one place under one
/// key (SPEC 9.3.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoundSub {
    /// 40 bits.
    pub round: u64,
    /// Number of the cell in its round.
    pub sub: u8,
}

impl RoundSub {
    /// N of SPEC 9.3: the nonce of the wide-block cipher.
    pub fn nonce(self) -> [u8; 12] {
        self.data_nonce(&[0; 12])
    }

    /// iv XOR N: the nonce of an inner body with data.
    fn data_nonce(self, iv: &[u8; 12]) -> [u8; 12] {
        debug_assert!(self.round < 1 << 40);
        let mut nonce = *iv;
        // The type of a data cell is 0.
        nonce[1] ^= self.sub;
        for (n, byte) in nonce[7..].iter_mut().zip(&self.round.to_be_bytes()[3..]) {
            *n ^= byte;
        }
        nonce
    }
}

fn wide_key(secret: &Secret) -> UivKey {
    UivKey::prepare(&expand::<UIV_KEY_LEN>(secret, "eddy1 wide"))
}

fn data_key(secret: &Secret) -> AeadKey {
    AeadKey::prepare(&expand(secret, "eddy1 key"), &expand(secret, "eddy1 iv"))
}

/// The layers of one hop in one channel; wiped on drop.
pub struct HopKeys {
    forward: UivKey,
    backward: UivKey,
}

impl HopKeys {
    /// From the hop's `sec[0]`, which stay where they are until they are wiped there.
    pub fn new(forward: &Secret, backward: &Secret) -> HopKeys {
        HopKeys { forward: wide_key(forward), backward: wide_key(backward) }
    }

    fn key(&self, direction: Direction) -> &UivKey {
        match direction {
            Direction::Forward => &self.forward,
            Direction::Backward => &self.backward,
        }
    }

    /// The layer of a body, for [`crate::gcm::encipher_batch`].
    pub fn job<'a>(&'a self, direction: Direction, place: RoundSub, body: &'a mut [u8]) -> Job<'a, UivKey> {
        Job::new(self.key(direction), place.nonce(), body)
    }

    /// Removes the layer of a body.
    ///
    /// # Panics
    /// No body of a class has this length.
    pub fn decipher(&self, direction: Direction, place: RoundSub, body: &mut [u8]) {
        self.key(direction).decipher(&place.nonce(), body);
    }
}

/// The keys of the exit in one channel; wiped on drop.
pub struct ExitKeys {
    /// For channels that are joined: the exit is a mix for them (SPEC 9.13.5).
    pub layers: HopKeys,
    forward: AeadKey,
    backward: AeadKey,
}

impl ExitKeys {
    /// From the exit's `sec[0]`, which stay where they are until they are wiped there.
    pub fn new(forward: &Secret, backward: &Secret) -> ExitKeys {
        ExitKeys { layers: HopKeys::new(forward, backward), forward: data_key(forward), backward: data_key(backward) }
    }

    /// An inner body with data: P inner bytes and their tag. The exit opens forward ones with
    /// [`crate::gcm::open_batch`] and seals backward ones with [`crate::gcm::seal_batch`].
    pub fn data_job<'a>(&'a self, direction: Direction, place: RoundSub, body: &'a mut [u8]) -> Job<'a, AeadKey> {
        let key = match direction {
            Direction::Forward => &self.forward,
            Direction::Backward => &self.backward,
        };
        Job::new(key, place.data_nonce(key.iv()), body)
    }
}

/// The keys of an entry in one channel; wiped on drop. A mix has them for its loops.
pub struct EntryKeys {
    /// Hop 1 first; in loops the hop behind the mix.
    mixes: ArrayVec<HopKeys, MAX_HOPS>,
    exit: ExitKeys,
}

/// The inner bytes of a backward cell.
#[derive(Debug, PartialEq, Eq)]
pub enum Inner<'a> {
    /// P bytes from the exit.
    Data(&'a [u8]),
    /// P - 8 bytes from the other entry of a meeting.
    Meeting(&'a [u8]),
}

impl EntryKeys {
    /// From the setup's secrets, the exit's last; they are wiped.
    ///
    /// # Panics
    /// There are not 1 to 8 hops.
    pub fn new(hops: Vec<HopSecrets>) -> EntryKeys {
        assert!((1..=MAX_HOPS).contains(&hops.len()));
        let (exit, mixes) = hops.split_last().expect("not empty");
        EntryKeys {
            mixes: mixes.iter().map(|hop| HopKeys::new(&hop.forward, &hop.backward)).collect(),
            exit: ExitKeys::new(&exit.forward, &exit.backward),
        }
    }

    /// Makes the body of the first link. `body` holds P inner bytes and room for a tag.
    ///
    /// # Panics
    /// No body of a class has this length.
    pub fn seal_data(&self, place: RoundSub, body: &mut [u8]) {
        seal_batch(&mut [self.exit.data_job(Direction::Forward, place, body)]);
        self.wrap(place, body);
    }

    /// Makes the body of the first link for a meeting. `body` holds room for [`super::MEETING_OVERHEAD`] bytes, then
    /// P - 8 inner bytes.
    ///
    /// # Panics
    /// No body of a class has this length.
    pub fn seal_meeting(&self, call: &Call, place: RoundSub, body: &mut [u8]) {
        call.seal(place, body);
        self.exit.layers.decipher(Direction::Forward, place, body);
        self.wrap(place, body);
    }

    /// Adds the layers of the mixes.
    fn wrap(&self, place: RoundSub, body: &mut [u8]) {
        self.mixes.iter().rev().for_each(|mix| mix.decipher(Direction::Forward, place, body));
    }

    /// Opens a backward body: as data of the exit, otherwise as one of this meeting. None if it is random (`garbled`).
    /// Both are tried in any case, so that the time hardly depends on what came. An engine may take longer for what
    /// does not open.
    ///
    /// # Panics
    /// No body of a class has this length.
    pub fn open<'a>(&self, call: Option<&Call>, place: RoundSub, body: &'a mut [u8]) -> Option<Inner<'a>> {
        self.mixes.iter().for_each(|mix| mix.decipher(Direction::Backward, place, body));
        let len = body.len();
        // An engine may erase what does not open.
        let mut kept = [0; BODY_LEN_MAX];
        kept[..len].copy_from_slice(body);
        let mut jobs = [self.exit.data_job(Direction::Backward, place, &mut *body)];
        open_batch(&mut jobs);
        let is_data = jobs[0].ok;
        let met = call.and_then(|call| {
            let kept = &mut kept[..len];
            self.exit.layers.decipher(Direction::Backward, place, kept);
            call.open(place, kept)
        });
        match (is_data, met) {
            (true, _) => Some(Inner::Data(&body[..len - TAG_LEN])),
            (false, Some(met)) => {
                let inner = &mut body[..met.len()];
                inner.copy_from_slice(met);
                Some(Inner::Meeting(inner))
            }
            (false, None) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gcm::encipher_batch;
    use crate::paced::{MEETING_OVERHEAD, MeetingSecret, PacedClass};

    const PLACE: RoundSub = RoundSub { round: 163_840_000_007, sub: 1 };
    const SIZES: [Class; 3] = [Class::S, Class::M, Class::L];

    /// Secrets of a channel of `hops` hops.
    fn secrets(channel: u8, hops: usize) -> Vec<HopSecrets> {
        let secret = |way: u8, hop| Secret::new([channel << 5 | way << 4 | hop; 32]);
        let of_hop = |hop| HopSecrets {
            confirm: Default::default(),
            ack: zeroize::Zeroizing::new([0; 28]),
            forward: secret(0, hop),
            backward: secret(1, hop),
        };
        (0..hops as u8).map(of_hop).collect()
    }

    fn exit_of(hops: &[HopSecrets]) -> ExitKeys {
        let exit = hops.last().unwrap();
        ExitKeys::new(&exit.forward, &exit.backward)
    }

    /// What these hops make of a body, in their order.
    fn pass<'a>(hops: impl Iterator<Item = &'a HopSecrets>, direction: Direction, body: &mut [u8]) {
        for hop in hops {
            let keys = HopKeys::new(&hop.forward, &hop.backward);
            encipher_batch(&mut [keys.job(direction, PLACE, body)]);
        }
    }

    fn open_data(exit: &ExitKeys, body: &mut [u8]) -> bool {
        let mut jobs = [exit.data_job(Direction::Forward, PLACE, body)];
        open_batch(&mut jobs);
        jobs[0].ok
    }

    #[test]
    fn data_reaches_the_exit_and_comes_back() {
        for (size, h) in SIZES.into_iter().flat_map(|size| [(size, 1), (size, 2), (size, 4), (size, 8)]) {
            let (class, hops) = (PacedClass::new(size), secrets(0, h));
            let (entry, exit) = (EntryKeys::new(hops.clone()), exit_of(&hops));
            let mut body = vec![5; class.body_len()];
            entry.seal_data(PLACE, &mut body);
            pass(hops[..h - 1].iter(), Direction::Forward, &mut body);
            assert!(open_data(&exit, &mut body), "{class}, {h} hops");
            assert_eq!(body[..size.payload()], vec![5; size.payload()]);

            body.fill(6);
            seal_batch(&mut [exit.data_job(Direction::Backward, PLACE, &mut body)]);
            pass(hops[..h - 1].iter().rev(), Direction::Backward, &mut body);
            let mut late = body.clone();
            assert_eq!(entry.open(None, PLACE, &mut body), Some(Inner::Data(&vec![6; size.payload()])));
            assert_eq!(entry.open(None, RoundSub { sub: 2, ..PLACE }, &mut late), None, "a body of another place");
        }
    }

    #[test]
    fn joined_channels_hear_each_other() {
        for (size, h) in SIZES.into_iter().flat_map(|size| [(size, 1), (size, 4), (size, 8)]) {
            let class = PacedClass::new(size);
            let meeting = MeetingSecret::new([9; 32]).meeting(&[1; 32], class, 4096);
            let (calls, ends) = ([meeting.call([1; 8]), meeting.call([2; 8])], [secrets(0, h), secrets(1, h)]);
            let keys = ends.each_ref().map(|end| EntryKeys::new(end.clone()));
            let mut body = vec![7; class.body_len()];
            keys[0].seal_meeting(&calls[0], PLACE, &mut body);
            pass(ends[0].iter(), Direction::Forward, &mut body);
            assert!(!open_data(&exit_of(&ends[0]), &mut body.clone()), "the exit cannot read it");
            let mut mirrored = body.clone();
            pass(ends[1].iter().rev(), Direction::Backward, &mut body);
            let inner = vec![7; class.body_len() - MEETING_OVERHEAD];
            assert_eq!(keys[1].open(Some(&calls[1]), PLACE, &mut body.clone()), Some(Inner::Meeting(&inner)));
            assert_eq!(keys[1].open(None, PLACE, &mut body), None);

            pass(ends[0].iter().rev(), Direction::Backward, &mut mirrored);
            assert_eq!(keys[0].open(Some(&calls[0]), PLACE, &mut mirrored), None, "a reflection");
        }
    }

    #[test]
    fn waiting_end_of_a_meeting_reads_the_exit() {
        let (class, hops) = (PacedClass::new(Class::S), secrets(0, 4));
        let call = MeetingSecret::new([9; 32]).meeting(&[1; 32], class, 4096).call([1; 8]);
        let mut body = vec![0; class.body_len()];
        seal_batch(&mut [exit_of(&hops).data_job(Direction::Backward, PLACE, &mut body)]);
        pass(hops[..3].iter().rev(), Direction::Backward, &mut body);
        assert_eq!(EntryKeys::new(hops).open(Some(&call), PLACE, &mut body), Some(Inner::Data(&[0; 208])));
    }

    #[test]
    fn flipped_bit_makes_the_body_random_behind_a_hop() {
        let (class, hops) = (PacedClass::new(Class::S), secrets(0, 2));
        let mut sent = vec![5; class.body_len()];
        EntryKeys::new(hops.clone()).seal_data(PLACE, &mut sent);
        let mut whole = sent.clone();
        pass(hops[..1].iter(), Direction::Forward, &mut whole);
        let exit = exit_of(&hops);
        for bit in 0..8 * sent.len() {
            let mut damaged = sent.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            pass(hops[..1].iter(), Direction::Forward, &mut damaged);
            let differing: u32 = whole.iter().zip(&damaged).map(|(a, b)| (a ^ b).count_ones()).sum();
            // 896 on average of 1792; 7 standard deviations are 148.
            assert!((748..=1044).contains(&differing), "bit {bit}: {differing} bits differ");
            assert!(whole.chunks(16).zip(damaged.chunks(16)).all(|(a, b)| a != b), "bit {bit}");
            assert!(!open_data(&exit, &mut damaged), "bit {bit}");
        }
    }

    #[test]
    fn batch_of_a_mix_enciphers_each_body_in_its_place() {
        let (class, hop) = (PacedClass::new(Class::S), secrets(0, 1).remove(0));
        let keys = HopKeys::new(&hop.forward, &hop.backward);
        let places: Vec<RoundSub> =
            (0..5).flat_map(|round| [0, 1].map(|sub| RoundSub { round: (1 << 39) + round, sub })).collect();
        let mut bodies = vec![vec![1; class.body_len()]; places.len()];
        let mut jobs: Vec<_> =
            places.iter().zip(&mut bodies).map(|(place, body)| keys.job(Direction::Forward, *place, body)).collect();
        encipher_batch(&mut jobs);
        for (place, body) in places.iter().zip(&bodies) {
            let mut one = vec![1; class.body_len()];
            encipher_batch(&mut [keys.job(Direction::Forward, *place, &mut one)]);
            assert_eq!(*body, one);
        }
        assert!(bodies.iter().enumerate().all(|(i, body)| !bodies[..i].contains(body)));
    }
}
