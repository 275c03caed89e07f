//! The destinations an exit may send to: the internet, but not its own network.
//!
//! Private, loopback, link-local, multicast, reserved and the exit's own addresses are refused unless
//! an `allow` entry lists them, and so are public addresses that clouds use for services inside; everything else is
//! open unless a `deny` entry lists it. Of the entries that hold an address and port the one with the narrowest network
//! decides, of those the one with the fewest ports, and `deny` where two are alike. IPv6 forms that embed an IPv4
//! address are judged by what they embed.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

const fn v4(a: u8, b: u8, c: u8, d: u8, bits: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), bits)
}

const fn v6(a: u16, b: u16, c: u16, bits: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), bits)
}

/// IANA's special-purpose registry (RFC 6890), what of it is not globally reachable, and multicast.
const DENIED_V4: [Ipv4Net; 15] = [
    v4(0, 0, 0, 0, 8),
    v4(10, 0, 0, 0, 8),
    v4(100, 64, 0, 0, 10),
    v4(127, 0, 0, 0, 8),
    v4(169, 254, 0, 0, 16),
    v4(172, 16, 0, 0, 12),
    v4(192, 0, 0, 0, 24),
    v4(192, 0, 2, 0, 24),
    v4(192, 88, 99, 0, 24),
    v4(192, 168, 0, 0, 16),
    v4(198, 18, 0, 0, 15),
    v4(198, 51, 100, 0, 24),
    v4(203, 0, 113, 0, 24),
    v4(224, 0, 0, 0, 4),
    v4(240, 0, 0, 0, 4),
];

/// Public addresses at which a cloud's hosts reach services of the cloud, and nobody else does. Most clouds use
/// link-local, unique local or shared address space, which is refused anyway.
const INTERNAL_V4: [Ipv4Net; 5] = [
    // Azure: the wire server, DNS, health probes.
    v4(168, 63, 129, 16, 32),
    // Google: restricted.googleapis.com, private.googleapis.com.
    v4(199, 36, 153, 4, 30),
    v4(199, 36, 153, 8, 30),
    // IBM: DNS, time, mirrors, service endpoints.
    v4(161, 26, 0, 0, 16),
    v4(166, 8, 0, 0, 14),
];

/// The same of Google over IPv6.
const INTERNAL_V6: [Ipv6Net; 2] = [
    Ipv6Net::new_assert(Ipv6Addr::new(0x2600, 0x2d00, 2, 0x1000, 0, 0, 0, 0), 56),
    Ipv6Net::new_assert(Ipv6Addr::new(0x2600, 0x2d00, 2, 0x2000, 0, 0, 0, 0), 56),
];

/// All of IPv6 that is globally reachable lies in here: not loopback, unique local, link-local, site-local,
/// multicast, IPv4-compatible or discard-only addresses.
const GLOBAL_V6: Ipv6Net = v6(0x2000, 0, 0, 3);

/// Parts of it that are special-purpose nevertheless.
const DENIED_V6: [Ipv6Net; 3] = [v6(0x2001, 0, 0, 23), v6(0x2001, 0xdb8, 0, 32), v6(0x3fff, 0, 0, 20)];

/// The well-known prefix of translators (RFC 6052).
const NAT64: Ipv6Net = v6(0x64, 0xff9b, 0, 96);
const SIX_TO_FOUR: Ipv6Net = v6(0x2002, 0, 0, 16);

/// A network's own prefix for a translator to IPv4: of 32, 40, 48, 56, 64 or 96 bits (RFC 6052).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nat64(Ipv6Net);

impl Nat64 {
    /// The IPv4 address that the translator sends to.
    fn embedded(self, v6: Ipv6Addr) -> Option<Ipv4Addr> {
        if !self.0.contains(&v6) {
            return None;
        }
        // Byte 8 is not part of it (RFC 6052, 2.2).
        let at = usize::from(self.0.prefix_len() / 8);
        let mut rest = v6.octets().into_iter().enumerate().skip(at).filter(|(at, _)| *at != 8).map(|(_, byte)| byte);
        let mut next = || rest.next().unwrap_or_default();
        Some(Ipv4Addr::new(next(), next(), next(), next()))
    }
}

impl FromStr for Nat64 {
    type Err = String;

    fn from_str(text: &str) -> Result<Nat64, String> {
        let net = text.parse::<Ipv6Net>().ok().filter(|net| matches!(net.prefix_len(), 32 | 40 | 48 | 56 | 64 | 96));
        let net = net.ok_or_else(|| {
            format!(
                "{text:?} is not the prefix of a translator: expected PREFIX/BITS with 32, 40, 48, 56, 64 or 96 bits, e.g. \
                 2001:db8:64::/96"
            )
        })?;
        if net.addr() != net.network() {
            return Err(format!(
                "{text:?} is an address in a network, not the prefix of a translator: write {}",
                net.trunc()
            ));
        }
        Ok(Nat64(net))
    }
}

/// An entry of `allow` or `deny`: a network, and ports of it.
///
/// Written `IP/BITS` or `IP`, with `:PORT` or `:PORT-PORT` behind it if not all ports are meant; an IPv6 network then
/// stands in brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    net: IpNet,
    ports: RangeInclusive<u16>,
}

/// Every port there is.
const ALL_PORTS: RangeInclusive<u16> = 1..=u16::MAX;

impl Rule {
    fn holds(&self, to: IpAddr, port: u16) -> bool {
        self.net.contains(&to) && self.ports.contains(&port)
    }

    /// The greater, the narrower.
    fn narrowness(&self) -> (u8, u16) {
        (self.net.prefix_len(), u16::MAX - (self.ports.end() - self.ports.start()))
    }
}

impl From<IpNet> for Rule {
    /// All ports of it.
    fn from(net: IpNet) -> Rule {
        Rule { net, ports: ALL_PORTS }
    }
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Rule, String> {
        let net = |text: &str| text.parse::<IpAddr>().map(IpNet::from).or_else(|_| text.parse()).ok();
        if let Some(net) = net(text) {
            return Ok(net.into());
        }
        let with_ports = || {
            let (net_text, ports) = text.rsplit_once(':')?;
            let found = match net_text.strip_prefix('[') {
                Some(inner) => net(inner.strip_suffix(']')?).filter(|net| matches!(net, IpNet::V6(_))),
                None => net(net_text).filter(|net| matches!(net, IpNet::V4(_))),
            };
            let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
            let ports = first.parse().ok()?..=last.parse().ok()?;
            (*ports.start() > 0 && !ports.is_empty()).then_some(Rule { net: found?, ports })
        };
        with_ports().ok_or_else(|| format!("{text:?} is not a network: expected IP/BITS, e.g. 10.0.0.0/8"))
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.net, &self.ports) {
            (net, ports) if *ports == ALL_PORTS => return net.fmt(f),
            (IpNet::V4(net), _) => write!(f, "{net}:{}", self.ports.start())?,
            (IpNet::V6(net), _) => write!(f, "[{net}]:{}", self.ports.start())?,
        }
        if self.ports.end() > self.ports.start() { write!(f, "-{}", self.ports.end()) } else { Ok(()) }
    }
}

/// The rules of one exit.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    allow: Vec<Rule>,
    deny: Vec<Rule>,
    own: Vec<IpAddr>,
    nat64: Vec<Nat64>,
    trust: Vec<Rule>,
}

impl Policy {
    /// Exceptions both ways, and the addresses of the host itself; trusts nobody.
    pub fn new(allow: Vec<Rule>, deny: Vec<Rule>, own: Vec<IpAddr>) -> Policy {
        Policy { allow, deny, own, ..Policy::default() }
    }

    /// The same, and translators beside that of the well-known prefix.
    #[must_use]
    pub fn translating(self, nat64: Vec<Nat64>) -> Policy {
        Policy { nat64, ..self }
    }

    /// The same, and destinations without [limits](super::limits).
    #[must_use]
    pub fn trusting(self, trust: Vec<Rule>) -> Policy {
        Policy { trust, ..self }
    }

    /// Replaces the addresses of the host itself.
    pub fn set_own(&mut self, own: Vec<IpAddr>) {
        self.own = own;
    }

    /// True if a destination has no limits.
    pub fn trusts(&self, to: SocketAddr) -> bool {
        self.trust.iter().any(|rule| rule.holds(to.ip().to_canonical(), to.port()))
    }

    /// True if datagrams may be sent to this destination.
    pub fn admits(&self, to: IpAddr, port: u16) -> bool {
        let to = to.to_canonical();
        if port == 0 {
            return false;
        }
        self.listed(to, port).unwrap_or_else(|| !(self.own.contains(&to) || self.denied(to, port)))
    }

    /// The verdict of the operator's own entries.
    fn listed(&self, to: IpAddr, port: u16) -> Option<bool> {
        let narrowest = |rules: &[Rule]| rules.iter().filter(|rule| rule.holds(to, port)).map(Rule::narrowness).max();
        if let IpAddr::V6(v6) = to
            && let Some(v4) = self.embedded(v6)
            && self.listed(v4.into(), port) == Some(false)
        {
            return Some(false);
        }
        match (narrowest(&self.allow), narrowest(&self.deny)) {
            (None, None) => None,
            (allow, deny) => Some(allow > deny),
        }
    }

    fn denied(&self, to: IpAddr, port: u16) -> bool {
        match to {
            IpAddr::V4(v4) => DENIED_V4.iter().chain(&INTERNAL_V4).any(|net| net.contains(&v4)),
            IpAddr::V6(v6) => match self.embedded(v6) {
                Some(v4) => !self.admits(v4.into(), port),
                None => !GLOBAL_V6.contains(&v6) || DENIED_V6.iter().chain(&INTERNAL_V6).any(|net| net.contains(&v6)),
            },
        }
    }

    /// The IPv4 address that a translator or tunnel would send to.
    fn embedded(&self, v6: Ipv6Addr) -> Option<Ipv4Addr> {
        if SIX_TO_FOUR.contains(&v6) {
            let [_, _, a, b, c, d, ..] = v6.octets();
            return Some(Ipv4Addr::new(a, b, c, d));
        }
        self.nat64.iter().chain(&[Nat64(NAT64)]).find_map(|nat64| nat64.embedded(v6))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_not_the_internet_is_refused() {
        let policy = Policy::new(Vec::new(), Vec::new(), vec![ip("93.184.216.34"), ip("2600::1")]);
        for denied in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.1.1",
            "172.31.255.255",
            "192.168.0.1",
            "198.19.0.1",
            "203.0.113.9",
            "224.0.0.1",
            "239.255.255.250",
            "255.255.255.255",
            "93.184.216.34",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fec0::1",
            "5f00::1",
            "100::1",
            "ff02::1",
            "2001:db8::1",
            "64:ff9b::10.0.0.1",
            "2002:7f00:1::1",
            "2600::1",
            "64:ff9b::93.184.216.34",
            // Public addresses inside clouds.
            "168.63.129.16",
            "199.36.153.4",
            "199.36.153.11",
            "161.26.0.10",
            "166.11.255.255",
            "64:ff9b::168.63.129.16",
            "2600:2d00:2:1000::1",
            "2600:2d00:2:20ff::1",
            "2002:a83f:8110::1",
        ] {
            assert!(!policy.admits(ip(denied), 53), "{denied}");
        }
        for open in [
            "1.1.1.1",
            "172.32.0.1",
            "2606:4700::1111",
            "64:ff9b::1.1.1.1",
            "::ffff:1.1.1.1",
            "168.63.129.17",
            "199.36.153.3",
            "199.36.153.12",
            "166.12.0.0",
        ] {
            assert!(policy.admits(ip(open), 53), "{open}");
            assert!(!policy.admits(ip(open), 0), "port 0");
        }
    }

    #[test]
    fn translated_address_is_judged_by_what_it_embeds() {
        // RFC 6052, 2.4: 192.0.2.33 under prefixes of every length.
        let embedding = [
            ("2001:db8::/32", "2001:db8:c000:221::"),
            ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
            ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"),
            ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
            ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100::"),
            ("2001:db8:122:344::/96", "2001:db8:122:344::192.0.2.33"),
        ];
        for (prefix, v6) in embedding {
            let IpAddr::V6(v6) = ip(v6) else { unreachable!() };
            let nat64: Nat64 = prefix.parse().unwrap();
            assert_eq!(nat64.embedded(v6), Some(Ipv4Addr::new(192, 0, 2, 33)), "{prefix}");
        }
        let own = vec![ip("93.184.216.34")];
        let plain = Policy::new(Vec::new(), vec!["9.9.9.9".parse().unwrap()], own);
        let policy = plain.clone().translating(vec!["2600:64::/96".parse().unwrap()]);
        for inside in ["2600:64::10.0.0.1", "2600:64::93.184.216.34", "2600:64::168.63.129.16", "2600:64::9.9.9.9"] {
            assert!(plain.admits(ip(inside), 53), "unknown prefixes are the internet");
            assert!(!policy.admits(ip(inside), 53), "{inside}");
        }
        assert!(policy.admits(ip("2600:64::1.1.1.1"), 53) && policy.admits(ip("2600:65::10.0.0.1"), 53));
        assert!(!policy.admits(ip("64:ff9b::10.0.0.1"), 53), "the well-known prefix stays");
        for bad in ["2600:64::/95", "2600:64::", "10.0.0.0/8", "2600::/128"] {
            assert!(bad.parse::<Nat64>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_allow_entry_opens_exactly_what_it_lists() {
        let policy = Policy::new(vec!["127.0.0.0/8".parse().unwrap()], Vec::new(), vec![ip("127.0.0.1")]);
        assert!(policy.admits(ip("127.0.0.1"), 9) && policy.admits(ip("::ffff:127.0.0.2"), 9));
        assert!(!policy.admits(ip("10.0.0.1"), 9) && !policy.admits(ip("::1"), 9));
    }

    #[test]
    fn of_allow_and_deny_the_narrowest_decides() {
        let nets = |texts: &[&str]| texts.iter().map(|net| net.parse().unwrap()).collect();
        let all = ["0.0.0.0/0", "::/0"];
        let loopback_alone = Policy::new(nets(&["127.0.0.0/8"]), nets(&all), Vec::new());
        assert!(loopback_alone.admits(ip("127.0.0.1"), 9) && loopback_alone.admits(ip("::ffff:127.0.0.1"), 9));
        for denied in ["1.1.1.1", "10.0.0.1", "2606:4700::1111", "64:ff9b::1.1.1.1", "::1", "255.255.255.255"] {
            assert!(!loopback_alone.admits(ip(denied), 9), "{denied}");
        }
        let policy = Policy::new(nets(&["10.1.0.0/16", "::/0"]), nets(&["1.1.1.1/32", "10.1.2.0/24"]), Vec::new());
        for open in ["10.1.1.1", "9.9.9.9", "64:ff9b::9.9.9.9", "fd00::1"] {
            assert!(policy.admits(ip(open), 9), "{open}");
        }
        for denied in ["10.1.2.3", "10.2.0.1", "1.1.1.1", "64:ff9b::1.1.1.1", "2002:101:101::1"] {
            assert!(!policy.admits(ip(denied), 9), "{denied}");
        }
        let alike = Policy::new(nets(&["1.0.0.0/8"]), nets(&["1.0.0.0/8"]), Vec::new());
        assert!(!alike.admits(ip("1.1.1.1"), 9));
    }

    #[test]
    fn ports_narrow_an_entry() {
        let rules = |texts: &[&str]| texts.iter().map(|rule| rule.parse().unwrap()).collect();
        let policy = Policy::new(
            rules(&["10.0.0.0/8:53", "10.0.0.0/8:5000-5999", "9.0.0.0/8:443"]),
            rules(&["10.0.0.0/8:5100-5100", "0.0.0.0/0:1-1023", "[::/0]:1-1023", "9.9.9.9"]),
            Vec::new(),
        );
        for (to, port, open) in [
            ("10.0.0.1", 53, true),
            ("10.0.0.1", 54, false),
            ("10.0.0.1", 5000, true),
            ("10.0.0.1", 5999, true),
            ("10.0.0.1", 6000, false),
            ("10.0.0.1", 5100, false),
            ("1.1.1.1", 53, false),
            ("1.1.1.1", 1024, true),
            ("64:ff9b::1.1.1.1", 53, false),
            ("64:ff9b::1.1.1.1", 1024, true),
            ("2606:4700::1111", 443, false),
            ("2606:4700::1111", 4433, true),
            ("9.1.1.1", 443, true),
            ("9.9.9.9", 443, false),
        ] {
            assert_eq!(policy.admits(ip(to), port), open, "{to} port {port}");
        }
    }

    #[test]
    fn a_rule_is_written_as_it_is_read() {
        for text in ["10.0.0.0/8", "192.0.2.7/32:53", "10.0.0.0/8:5000-5999", "2001:db8::/32", "[2001:db8::/32]:53"] {
            assert_eq!(text.parse::<Rule>().unwrap().to_string(), text);
        }
        assert_eq!("192.0.2.7".parse::<Rule>().unwrap().to_string(), "192.0.2.7/32");
        assert_eq!("192.0.2.7:53".parse::<Rule>().unwrap().to_string(), "192.0.2.7/32:53");
        assert_eq!("[::1]:53-54".parse::<Rule>().unwrap().to_string(), "[::1/128]:53-54");
        for bad in ["everyone", "10.0.0.0/33", "10.0.0.0/8:", "10.0.0.0/8:0", "10.0.0.0/8:9-8", "10.0.0.0/8:65536"] {
            assert!(bad.parse::<Rule>().is_err(), "{bad}");
        }
        for bad in ["[10.0.0.0/8]:53", "[::1:53", "::1]:53", "[::1]", "10.0.0.0/8:5-", "10.0.0.0/8:a"] {
            assert!(bad.parse::<Rule>().is_err(), "{bad}");
        }
    }
}
