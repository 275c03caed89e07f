//! Meetings: two channels that the exit joins, and bodies that it cannot read (SPEC 9.13).

use std::array::TryFromSliceError;
use std::str::FromStr;

use subtle::ConstantTimeEq;
use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

use super::{PacedClass, RoundSub};
use crate::gcm::{UIV_KEY_LEN, UivKey};
use crate::kdf::{Secret, expand_info, extract};
use crate::setup::TOKEN_LEN;

/// Bytes of a salt, which is drawn at random for each channel.
pub const SALT_LEN: usize = 8;
/// Zeros that a meeting body begins with.
const ZEROS_LEN: usize = 16;
/// Bytes of a meeting body before its inner bytes: zeros and a salt.
pub const MEETING_OVERHEAD: usize = ZEROS_LEN + SALT_LEN;

/// What a secret is written behind.
const PREFIX: &str = "eddy-meet-1:";
const DIGITS: usize = 64;

/// The secret of two users who meet. In a file it is one line: `eddy-meet-1:` and 64 hexadecimal digits. In a box, so
/// that nothing stays behind where it was, in a list for example: it is wiped when it is dropped.
#[derive(Clone)]
pub struct MeetingSecret(Box<Secret>);

/// Why a text is not a meeting secret. The messages do not show the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadSecret {
    #[error(
        "invalid secret of a meeting: expected {PREFIX:?}, in lower case, and {DIGITS} hexadecimal digits, found another \
         beginning"
    )]
    Prefix,
    #[error(
        "invalid secret of a meeting: expected {PREFIX:?} and {DIGITS} hexadecimal digits alone, found spaces, empty lines \
         or a line end of Windows (CR LF) around them"
    )]
    Spaces,
    #[error("invalid secret of a meeting: expected {DIGITS} hexadecimal digits after {PREFIX:?}, found {0} bytes")]
    Length(usize),
    #[error(
        "invalid secret of a meeting: expected {DIGITS} hexadecimal digits after {PREFIX:?}, number {0} is another byte"
    )]
    Digit(usize),
}

impl MeetingSecret {
    /// True if it is the same secret, in constant time.
    pub fn is_same(&self, other: &MeetingSecret) -> bool {
        self.0.expose().ct_eq(other.0.expose()).into()
    }

    /// What its line begins with. What follows is secret.
    pub const PREFIX: &str = PREFIX;

    /// From 32 random bytes.
    pub fn new(bytes: [u8; 32]) -> MeetingSecret {
        MeetingSecret(Box::new(Secret::new(bytes)))
    }

    /// The line of its file, with its end.
    pub fn to_text(&self) -> Zeroizing<String> {
        // Of its final size, so that no part stays in memory that is given back.
        let mut text = Zeroizing::new(String::with_capacity(PREFIX.len() + DIGITS + 1));
        text.push_str(PREFIX);
        for nibble in self.0.expose().iter().flat_map(|byte| [byte >> 4, byte & 15]) {
            text.push(char::from_digit(nibble.into(), 16).expect("a nibble is a digit"));
        }
        text.push('\n');
        text
    }

    /// The keys of the batch with this first round.
    pub fn meeting(&self, chain_id: &[u8; 32], class: PacedClass, first: u64) -> Meeting {
        let prk = extract(b"eddy1 meet", &[self.0.expose()]);
        let fill = |label: &[u8], out: &mut [u8]| {
            let info = [label, chain_id, &[class.number()], &first.to_be_bytes()[3..]].concat();
            expand_info(&prk, &info, out).expect("it is far below 255 hash lengths");
        };
        let (mut token, mut call) = (MeetingToken::new([0; TOKEN_LEN]), Zeroizing::new([0; UIV_KEY_LEN]));
        fill(b"token", &mut token.0[..]);
        fill(b"call", &mut call[..]);
        Meeting { token, call }
    }
}

impl FromStr for MeetingSecret {
    type Err = BadSecret;

    /// Reads the text of a file.
    fn from_str(text: &str) -> Result<MeetingSecret, BadSecret> {
        let line = text.strip_suffix('\n').unwrap_or(text);
        let digits = line.trim().strip_prefix(PREFIX).ok_or(BadSecret::Prefix)?.as_bytes();
        if line.trim().len() < line.len() {
            return Err(BadSecret::Spaces);
        }
        if digits.len() != DIGITS {
            return Err(BadSecret::Length(digits.len()));
        }
        let mut bytes = Zeroizing::new([0; DIGITS / 2]);
        for (i, digit) in digits.iter().enumerate() {
            let nibble = char::from(*digit).to_digit(16).ok_or(BadSecret::Digit(i + 1))?;
            bytes[i / 2] = bytes[i / 2] << 4 | nibble as u8;
        }
        Ok(MeetingSecret::new(*bytes))
    }
}

impl std::fmt::Debug for MeetingSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MeetingSecret(..)")
    }
}

/// Names a meeting in a setup to the exit, which joins the channels with equal ones. Comparison takes constant time. It
/// is wiped when it is dropped, and where it was when it is moved.
#[derive(Clone)]
pub struct MeetingToken(Box<Zeroizing<[u8; TOKEN_LEN]>>);

impl MeetingToken {
    pub fn new(bytes: [u8; TOKEN_LEN]) -> MeetingToken {
        MeetingToken(Box::new(Zeroizing::new(bytes)))
    }

    /// For a setup, or a keyed hash.
    pub fn expose(&self) -> &[u8; TOKEN_LEN] {
        &self.0
    }
}

impl TryFrom<&[u8]> for MeetingToken {
    type Error = TryFromSliceError;

    /// Copies the bytes to where they are wiped, and nowhere else.
    fn try_from(bytes: &[u8]) -> Result<MeetingToken, TryFromSliceError> {
        let bytes: &[u8; TOKEN_LEN] = bytes.try_into()?;
        let mut token = MeetingToken::new([0; TOKEN_LEN]);
        token.0.copy_from_slice(bytes);
        Ok(token)
    }
}

impl std::fmt::Debug for MeetingToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MeetingToken(..)")
    }
}

impl PartialEq for MeetingToken {
    fn eq(&self, other: &MeetingToken) -> bool {
        self.expose().ct_eq(other.expose()).into()
    }
}

impl Eq for MeetingToken {}

/// A meeting in one batch.
pub struct Meeting {
    /// For the setup of the batch's channel.
    pub token: MeetingToken,
    call: Zeroizing<[u8; UIV_KEY_LEN]>,
}

impl Meeting {
    /// What seals and opens the bodies of one channel. `salt` is random.
    pub fn call(&self, salt: [u8; SALT_LEN]) -> Call {
        Call { key: UivKey::prepare(&self.call), salt }
    }
}

/// Seals and opens the meeting bodies of one channel.
pub struct Call {
    key: UivKey,
    salt: [u8; SALT_LEN],
}

impl Drop for Call {
    fn drop(&mut self) {
        self.salt.zeroize();
    }
}

impl Call {
    /// Seals a body in place: room for [`MEETING_OVERHEAD`] bytes, then P - 8 inner bytes.
    ///
    /// # Panics
    /// No body of a class has this length.
    pub fn seal(&self, place: RoundSub, body: &mut [u8]) {
        body[..ZEROS_LEN].fill(0);
        body[ZEROS_LEN..MEETING_OVERHEAD].copy_from_slice(&self.salt);
        self.key.encipher(&place.nonce(), body);
    }

    /// Opens a body in place: its inner bytes. None if it is not a meeting body of the other channel, so also for one
    /// of its own. Comparisons take constant time.
    ///
    /// # Panics
    /// No body of a class has this length.
    pub fn open<'a>(&self, place: RoundSub, body: &'a mut [u8]) -> Option<&'a [u8]> {
        self.key.decipher(&place.nonce(), body);
        let (head, inner) = body.split_at(MEETING_OVERHEAD);
        let (zeros, salt) = head.split_at(ZEROS_LEN);
        let accepted = zeros.ct_eq(&[0; ZEROS_LEN]) & !salt.ct_eq(&self.salt);
        bool::from(accepted).then_some(inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::Class;

    const CLASS: PacedClass = PacedClass::new(Class::S);
    const PLACE: RoundSub = RoundSub { round: 163_840_000_011, sub: 0 };

    #[test]
    fn secrets_show_nothing_and_leave_nothing_where_they_were() {
        let (secret, token) = (MeetingSecret::new([7; 32]), MeetingToken::new([7; 32]));
        assert_eq!(format!("{secret:?} {token:?}"), "MeetingSecret(..) MeetingToken(..)");
        let at = token.expose().as_ptr();
        let moved = [token];
        assert_eq!(moved[0].expose().as_ptr(), at, "only its address is moved");
        let at = secret.0.expose().as_ptr();
        let moved = [secret];
        assert_eq!(moved[0].0.expose().as_ptr(), at);
    }

    #[test]
    fn secret_survives_its_file() {
        let bytes = std::array::from_fn(|i| i as u8 * 7);
        let text = MeetingSecret::new(bytes).to_text();
        assert!(text.starts_with("eddy-meet-1:00070e15") && text.ends_with("d2d9\n") && text.len() == 77);
        for text in [&text[..], text.trim_end(), &format!("{PREFIX}{}", text.trim_end()[12..].to_uppercase())] {
            assert_eq!(text.parse::<MeetingSecret>().unwrap().0.expose(), &bytes);
        }
    }

    #[test]
    fn other_texts_are_refused_without_showing_them() {
        let good = MeetingSecret::new([0xab; 32]).to_text();
        let good = good.trim_end();
        let cases = [
            (String::new(), BadSecret::Prefix),
            (good[12..].to_owned(), BadSecret::Prefix),
            (good.replace("meet-1", "meet-2"), BadSecret::Prefix),
            (good.to_uppercase(), BadSecret::Prefix),
            (format!(" {good}"), BadSecret::Spaces),
            (good[..75].to_owned(), BadSecret::Length(63)),
            (format!("{good}0"), BadSecret::Length(65)),
            (format!("{good}\n\n"), BadSecret::Spaces),
            (format!("{good}\r\n"), BadSecret::Spaces),
            (good.replace('b', "g"), BadSecret::Digit(2)),
            (format!("{}ä", &good[..74]), BadSecret::Digit(63)),
        ];
        for (text, expected) in cases {
            let refused = text.parse::<MeetingSecret>().unwrap_err();
            assert_eq!(refused, expected, "{text:?}");
            let message = refused.to_string();
            assert!(message.contains("64 hexadecimal digits") && !message.contains("abab"), "{message}");
        }
        assert_eq!(format!("{:?}", MeetingSecret::new([1; 32])), "MeetingSecret(..)");
    }

    #[test]
    fn token_and_call_differ_with_chain_class_and_batch() {
        let secret = MeetingSecret::new([9; 32]);
        let base = secret.meeting(&[1; 32], CLASS, 4096);
        for other in [
            secret.meeting(&[2; 32], CLASS, 4096),
            secret.meeting(&[1; 32], PacedClass::new(Class::M), 4096),
            secret.meeting(&[1; 32], CLASS, 6144),
            MeetingSecret::new([8; 32]).meeting(&[1; 32], CLASS, 4096),
        ] {
            assert!(other.token != base.token && *other.call != *base.call);
        }
        assert_eq!(secret.meeting(&[1; 32], CLASS, 4096).token, base.token);
    }

    #[test]
    fn reflection_and_damage_are_refused() {
        let meeting = MeetingSecret::new([9; 32]).meeting(&[1; 32], CLASS, 4096);
        let (mine, theirs) = (meeting.call([1; 8]), meeting.call([1, 1, 1, 1, 1, 1, 1, 0]));
        let mut sealed = vec![5; CLASS.body_len()];
        mine.seal(PLACE, &mut sealed);
        assert_eq!(theirs.open(PLACE, &mut sealed.clone()), Some(&[5; 200][..]));
        assert_eq!(mine.open(PLACE, &mut sealed.clone()), None, "a reflection");
        assert_eq!(theirs.open(RoundSub { round: PLACE.round + 1, ..PLACE }, &mut sealed.clone()), None);
        assert_eq!(theirs.open(RoundSub { sub: 1, ..PLACE }, &mut sealed.clone()), None);
        // Deciphered, a bit of Y_R damages u and hence the zeros.
        for bit in 0..8 * sealed.len() {
            let mut damaged = sealed.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(theirs.open(PLACE, &mut damaged), None, "bit {bit}");
        }
    }
}
