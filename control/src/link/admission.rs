//! Admission of handshakes: which message 1 may cost public-key work, and who needs a cookie (SPEC 4.9, 4.11, 5.9).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use wire::ids::Side;

use crate::config::Config;
use crate::context::Context;
use crate::cookie::{Answer, Cookies, TEXT_LEN};
use crate::counters::Refusal;
use crate::datagram::{MAC_LEN, Parsed};
use crate::io::{Event, Output};
use crate::prefix::Buckets;
use crate::rate::{Bucket, Rate};

/// How long cookies stay required after the last trigger.
const LOAD_LASTS: Duration = Duration::from_secs(1);
/// Rate of cookie replies; one costs control a few microseconds.
const COOKIES: Rate = Rate { per_second: 20_000, burst: 2_000 };
/// Challenges to addresses of the previous hop, and as many to others.
const CHALLENGES: Rate = Rate { per_second: 5, burst: 5 };
/// Messages 1 between hops from addresses that are not the previous hop's.
const ELSEWHERE: Rate = Rate { per_second: 2, burst: 2 };
/// The same of all prefixes.
const ELSEWHERE_IN_ALL: Rate = Rate { per_second: 50, burst: 50 };
/// Such an address is reported this often.
const ELSEWHERE_REPORT: Duration = Duration::from_secs(60);

/// A message 1 that gets kind 3 in its place.
pub(super) struct Asked<'a> {
    pub(super) from: SocketAddr,
    pub(super) index: u32,
    /// Of part 0.
    pub(super) mac1: &'a [u8; MAC_LEN],
    /// Index in [`Context::statics`] of the static that it was made for.
    pub(super) own: usize,
}

impl Asked<'_> {
    pub(super) fn answer(&self, cx: &mut Context, kind: Answer, text: &[u8; TEXT_LEN]) {
        let responder = &cx.statics[self.own].public;
        let datagram = kind.seal(&mut cx.rng, self.index, responder, self.mac1, text);
        cx.out.push_back(Output::Send { side: Side::Up, to: self.from, datagram });
    }
}

pub(super) struct Admission {
    /// Limits public-key work.
    bucket: Bucket,
    /// The same for each prefix, at Mix 1: without and with a cookie.
    prefixes: Option<[Buckets; 2]>,
    /// IK: limits messages 1 that do not come from an address of the previous hop, for each prefix and in all.
    elsewhere: (Buckets, Bucket),
    elsewhere_reported: Option<Duration>,
    /// IK: the peer of the link that is up.
    peer: Option<IpAddr>,
    pub(super) cookies: Cookies,
    cookie_bucket: Bucket,
    /// IK: limits challenges, to addresses of the previous hop and to others.
    challenges: [Bucket; 2],
    /// Cookies are required until then.
    loaded_until: Duration,
}

impl Admission {
    pub(super) fn new(config: &Config, now: Duration) -> Admission {
        Admission {
            bucket: Bucket::new(config.caps.handshakes, now),
            prefixes: config.faces_entries().then(|| [(); 2].map(|()| Buckets::with_subnets(now))),
            elsewhere: (Buckets::new(ELSEWHERE, now), Bucket::new(ELSEWHERE_IN_ALL, now)),
            elsewhere_reported: None,
            peer: None,
            cookies: Cookies::default(),
            cookie_bucket: Bucket::new(COOKIES, now),
            challenges: [Bucket::new(CHALLENGES, now), Bucket::new(CHALLENGES, now)],
            loaded_until: Duration::ZERO,
        }
    }

    /// Sets the address of the previous hop's link that is up.
    pub(super) fn set_peer(&mut self, peer: Option<IpAddr>) {
        self.peer = peer.map(|ip| ip.to_canonical());
    }

    /// True if a half has a cookie of its source.
    pub(super) fn has_cookie(&mut self, cx: &mut Context, now: Duration, from: SocketAddr, half: &Parsed<'_>) -> bool {
        self.cookies.accept(&mut cx.rng, now, from, half)
    }

    /// True if a half from this address needs a cookie before it may cost work (SPEC 4.9.3).
    pub(super) fn requires_cookie(&mut self, cx: &mut Context, now: Duration, from: SocketAddr) -> bool {
        if self.bucket.is_low(now) {
            self.require_cookies(now);
        }
        now < self.loaded_until
            || self.is_elsewhere(cx, from)
            || self.buckets(cx, from).is_some_and(|[without, _]| without.is_low(&mut cx.rng, now, from.ip()))
    }

    pub(super) fn require_cookies(&mut self, now: Duration) {
        self.loaded_until = now + LOAD_LASTS;
    }

    /// IK: true if this is neither an address of the previous hop nor that of a link which is up: the previous hop may
    /// be behind a NAT.
    fn is_elsewhere(&self, cx: &Context, from: SocketAddr) -> bool {
        let ip = from.ip().to_canonical();
        self.prefixes.is_none() && self.peer != Some(ip) && !cx.is_previous(ip)
    }

    /// The buckets of prefixes, unless that of this address is exempt.
    fn buckets(&mut self, cx: &Context, from: SocketAddr) -> Option<&mut [Buckets; 2]> {
        cx.config.prefix(from.ip()).and(self.prefixes.as_mut())
    }

    /// Answers part 0 of a half by a cookie.
    pub(super) fn give_cookie(&mut self, cx: &mut Context, now: Duration, asked: &Asked<'_>) {
        if self.cookie_bucket.take(now) {
            let cookie = self.cookies.of(&mut cx.rng, now, asked.from);
            asked.answer(cx, Answer::Cookie, &cookie);
            cx.counters.cookies += 1;
        }
    }

    /// IK: takes a token for a challenge. Addresses that are not the previous hop's have others.
    pub(super) fn may_challenge(&mut self, cx: &Context, now: Duration, from: SocketAddr) -> bool {
        let is_elsewhere = self.is_elsewhere(cx, from);
        self.challenges[usize::from(is_elsewhere)].take(now)
    }

    /// Limits the public-key work that messages 1 from this address cause.
    pub(super) fn admit(
        &mut self,
        cx: &mut Context,
        now: Duration,
        from: SocketAddr,
        has_cookie: bool,
    ) -> Result<(), Refusal> {
        if self.is_elsewhere(cx, from) {
            if self.elsewhere_reported.is_none_or(|last| now.saturating_sub(last) >= ELSEWHERE_REPORT) {
                self.elsewhere_reported = Some(now);
                cx.event(Event::HandshakeFromElsewhere { from });
            }
            let (of_prefix, in_all) = &mut self.elsewhere;
            if !of_prefix.take(&mut cx.rng, now, from.ip()) || !in_all.take(now) {
                return Err(Refusal::ElsewhereRateLimited);
            }
        }
        if let Some(buckets) = self.buckets(cx, from)
            && !buckets[usize::from(has_cookie)].take(&mut cx.rng, now, from.ip())
        {
            return Err(Refusal::PrefixRateLimited);
        }
        if !self.bucket.take(now) {
            return Err(Refusal::HandshakeRateLimited);
        }
        Ok(())
    }
}
