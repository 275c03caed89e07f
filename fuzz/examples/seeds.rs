//! Writes `seeds/`, always the same bytes: `cargo run --example seeds` in this folder. A target accepts each
//! seed, or almost, so that a fuzzer starts after the first checks.

use std::fs;
use std::path::Path;

use control::trust::State;
use eddy_fuzz::{Step, To, WALL_S, chain_toml, signed};
use wire::cell::{CellKind, Class, Header};
use wire::frames::{Address, Frame, SESSION_FLOW, Status, Writer, split};
use wire::paced::clock::ClockCell;
use wire::paced::{MeetingSecret, PacedClass, PacedHeader};

fn write(target: &str, name: &str, bytes: &[u8]) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    fs::create_dir_all(&dir).expect("seeds/ can be made");
    fs::write(dir.join(name), bytes).expect("seeds/ can be written");
}

fn aead() {
    let batch = |name, long: bool, flip: u16, jobs: &[(u8, u16, u8)]| {
        let mut input = vec![u8::from(long)];
        input.extend((0..64).map(|i| i * 3));
        input.extend(flip.to_le_bytes());
        for (gap, len, key) in jobs {
            input.extend([1, *gap]);
            input.extend(len.to_le_bytes());
            input.push(*key);
        }
        input.push(0);
        input.extend(b"what lies in memory");
        write("aead", name, &input);
    };
    batch("cells", false, 400, &[(16, 1328, 0), (16, 1344, 1), (16, 1168, 0), (0, 224, 1)]);
    batch(
        "ends",
        false,
        9,
        &[(1, 0, 0), (2, 1, 0), (3, 15, 0), (5, 16, 1), (7, 17, 1), (9, 31, 0), (0, 33, 0), (0, 63, 1)],
    );
    batch("groups", true, 2000, &[(0, 207, 0), (0, 208, 0), (0, 224, 1), (0, 304, 0), (0, 320, 1), (63, 4096, 0)]);
}

fn cells() {
    for (name, class, hops, kind) in [
        ("data", Class::S, 4, CellKind::Data),
        ("setup", Class::M, 8, CellKind::Setup),
        ("link", Class::L, 2, CellKind::Link),
    ] {
        let channel = if kind == CellKind::Link { 0 } else { 0x0102_0304 };
        let header = Header { channel, seq: 77, sub: u8::from(kind == CellKind::Setup), kind, class };
        let input = [&[class as u8, hops, 0, 1][..], &header.to_block(), b"\x01content"].concat();
        write("cell", name, &input);
    }
}

fn frames() {
    let cell = |name, frames: &[Frame<'_>]| {
        let mut inner = vec![0; frames.iter().map(Frame::len).sum()];
        let mut writer = Writer::new(&mut inner);
        frames.iter().for_each(|frame| assert!(writer.put(frame), "{frame:?}"));
        writer.finish();
        write("frames", name, &inner);
    };
    let (flow, token) = (1, [9; 16]);
    let v4 = Address::Ip("192.0.2.1:53".parse().expect("an address"));
    let v6 = Address::Ip("[2001:db8::1]:443".parse().expect("an address"));
    let name = Address::Name("example.org", 443);
    let open = |to| Frame::Open { flow, map: 2, token, to };
    cell("open", &[open(v4), open(v6), open(name), Frame::Dgram { flow, data: b"hello" }]);
    cell("forward", &[Frame::Move { flow, token }, Frame::Close { flow }, Frame::Ping([1; 8]), Frame::Pong([2; 8])]);
    let peer = Frame::Peer { flow, from: "192.0.2.7:7".parse().expect("an address") };
    let report = Frame::Report { highest: 70, received: 60 };
    cell("backward", &[Frame::Status { flow, code: Status::Refused }, report, peer]);
    // The target reassembles cells of 24 bytes.
    let data: Vec<u8> = (0..100).collect();
    let whole: Vec<_> = split(24, flow, 5, &data).collect();
    let other: Vec<_> = split(24, 2, 5, &data[..40]).collect();
    cell("fragments", &whole);
    let late = Frame::Dgram { flow: 250, data: b"" };
    cell("late", &[whole[0], other[0], late, whole[1], other[1], other[2], Frame::Close { flow }]);
    let many: Vec<_> = (0..18).map(|id| Frame::Frag { flow, id, index: 0, last: false, data: &[7; 16] }).collect();
    cell("many", &many);
    // Paced classes.
    let inside = |frames: &[Frame<'_>]| {
        let mut inner = vec![0; frames.iter().map(Frame::len).sum()];
        let mut writer = Writer::new(&mut inner);
        frames.iter().for_each(|frame| assert!(writer.put(frame)));
        inner
    };
    let earlier = inside(&[Frame::Session([3; 16]), Frame::Dgram { flow, data: b"before" }]);
    cell("session", &[Frame::Again(&earlier), Frame::Session([3; 16]), open(v4), Frame::Dgram { flow, data: b"now" }]);
    cell(
        "answer",
        &[Frame::Status { flow: SESSION_FLOW, code: Status::UnknownFlow }, Frame::Dgram { flow, data: b"" }],
    );
    let earlier = inside(&[Frame::Dgram { flow: 0, data: b"before" }, Frame::Dgram { flow: 0, data: b"" }]);
    let part = Frame::Frag { flow: 0, id: 9, index: 0, last: false, data: &[7; 16] };
    cell("meeting", &[Frame::Again(&earlier), part, Frame::Dgram { flow: 0, data: b"now" }]);
}

fn paced() {
    const RUNNING: u64 = 80_000_000 * 2048;
    for (name, choice, size, kind) in [
        ("data", 0, Class::S, CellKind::Data),
        ("setup", 1, Class::M, CellKind::Setup),
        ("link", 2, Class::L, CellKind::Link),
    ] {
        let channel = if kind == CellKind::Link { 0 } else { 0x0102_0304 };
        let seq = if kind == CellKind::Data { RUNNING + 7 } else { 77 };
        let header = PacedHeader { channel, seq, sub: 1, kind, class: PacedClass::new(size), tag: [0; 4] };
        let clock = |sent, peer, received| ClockCell { sent, peer, received }.to_bytes();
        // Kind, when it came, and a clock cell. Its first bytes are those of the other kinds, too.
        let contents = [
            &[2][..],
            &6000_u64.to_le_bytes(),
            &clock(5000, 0, 0),
            &[5],
            &7000_u64.to_le_bytes(),
            &clock(6500, 5200, 5900),
        ];
        let input = [&[choice, 1][..], &RUNNING.to_le_bytes(), &header.to_block(), &contents.concat()].concat();
        write("paced", name, &input);
    }
    // Not a real secret.
    let text = MeetingSecret::new([0x5a; 32]).to_text();
    let upper = text.trim_end().replace('a', "A");
    for (name, text) in [("secret", &text[..]), ("upper", &upper), ("short", &text[..70])] {
        write("paced", name, &[&[3; 10], text.as_bytes()].concat());
    }
}

fn setups_and_acks() {
    // Bits to flip: none, one at the start, one at the end.
    let mut last = vec![0; 319];
    last.push(1);
    let ciphertext = [&[0; 40][..], &[1]].concat();
    for (name, choice, flips) in [
        ("whole", 0, &[0; 40][..]),
        ("front", 4, &[1]),
        ("end", 0, &last),
        ("whole-2", 1, &[0; 40]),
        ("ciphertext-2", 5, &ciphertext),
        ("paced", 2, &[0; 40]),
        ("paced-exit-2", 19, &[0; 40]),
    ] {
        write("setup", name, &[&[choice], flips].concat());
    }
    for (name, chain, hop, flips) in
        [("whole", 0, 4, &[0; 4][..]), ("slot", 1, 1, &[1]), ("filling", 1, 0, &[&[0; 200][..], &[1]].concat())]
    {
        write("ack", name, &[&[chain, hop], flips].concat());
    }
}

fn handshakes() {
    let to = |responder, mac1| To { responder, up: responder, mac1, from: 0 };
    let script = |name, between_hops: bool, steps: &[Step]| {
        let mut out = vec![u8::from(between_hops)];
        steps.iter().for_each(|step| step.write(&mut out));
        write("handshake", name, &out);
    };
    let sent = |which, to, flips: &[(u16, u8)]| Step::Recorded { to, which, flips: flips.to_vec() };
    let (responder, initiator) = (to(true, false), to(false, false));
    let whole = [sent(0, responder, &[]), sent(1, responder, &[]), sent(2, initiator, &[])];
    script("nk", false, &whole);
    script("ik", true, &whole);
    script("twice", true, &[&whole[..], &whole[..]].concat());
    // With mac1 recomputed, so that the flipped bits reach Noise: ephemeral, static, payload, tag; the index.
    let forged = [40, 100, 300, 630].map(|at| sent((at / 400) as u8, to(true, true), &[(at, 1)]));
    script("forged-1", false, &[&forged[..], &[sent(1, responder, &[])]].concat());
    let forged = [8, 60, 1100, 1140].map(|at| sent(2, to(false, true), &[(at, 0x80)]));
    script("forged-2", true, &forged);
    let renamed = [0, 1].map(|half| sent(half, to(true, true), &[(7, 1)]));
    script("index", false, &renamed);
    let raw = |len, bytes: &[u8]| Step::Raw { to: to(true, true), len, bytes: bytes.to_vec() };
    script("raw", true, &[raw(1, &[1, 0, 0, 0, 1, 2, 3, 4]), raw(1, &[1, 1, 0, 0, 1, 2, 3, 4]), raw(3, &[3])]);
    script("late", false, &[whole[0].clone(), Step::Tick(1000), whole[1].clone(), Step::Tick(5000), whole[2].clone()]);
}

fn descriptors() {
    for position in [1, 3] {
        let signed = signed(position);
        write("descriptor", &format!("signed-{position}"), &[&[0], signed.bytes()].concat());
        write("descriptor", &format!("to-sign-{position}"), &[&[1], signed.bytes()].concat());
    }
}

fn trust() {
    // Step, link, choice: records of hops 2 and 3, their signatures, an ask of an entry, time.
    let records: &[u8] = &[2, 0, 0, 2, 0, 1, 3, 0, 0, 5, 1, 0];
    write("trust", "bundle", records);
    let ask = [&[0, 1, 190, 1][..], &[0; 94]].concat();
    write("trust", "ask", &[records, &ask].concat());
    write("trust", "next-epoch", &[&[5, 255, 255].repeat(46)[..], &[2, 0, 2, 2, 0, 3, 3, 0, 1]].concat());
    write("trust", "descriptors", &[1, 0, 0, 1, 0, 1, 1, 1, 0, 1, 0, 2, 0, 9, 1]);
    write("trust", "state", &[&[4, 0, 255][..], &State::fresh(WALL_S).to_bytes()].concat());
}

fn texts() {
    let config = |name, text: &str| write("config", name, text.as_bytes());
    config("chain", &format!("c{}", chain_toml()));
    config(
        "mix",
        "nrole = \"mix\"\nchain = \"chain.toml\"\nkeys = \"mix1.key\"\nstatus = \"mix1.sock\"\n\
         up = \"127.0.0.1:4701\"\ndown = \"0.0.0.0:0\"\nnext = \"mix2.example:4702\"\n\
         mixing = \"threshold-or-timed:n=64,n_min=8,t=5ms\"\nwindow = 4096\nreceive_buffer = 8388608\nrenew_after_s = 120\n",
    );
    config(
        "entry",
        "nrole = \"entry\"\nchain = \"c\"\nstate = \"e\"\nstatus = \"s\"\ndown = \"[::]:0\"\nchannels = 4\n\
         flow_idle_s = 300\npymix = [\"127.0.0.1:5001\"]\n[[forward]]\nlisten = \"5000\"\nto = \"example.org:443\"\n\
         [[forward]]\nlisten = \"[::1]:5002\"\nto = \"192.0.2.7:53\"\n",
    );
    config(
        "exit",
        "nrole = \"exit\"\nchain = \"c\"\nkeys = \"k\"\nstatus = \"s\"\nup = \"127.0.0.1:4704\"\n\
         allow = [\"10.0.0.0/8\", \"::1\"]\nresolver = \"9.9.9.9:53\"\nmax_flows_per_channel = 1024\nmax_sockets = 4096\n",
    );
    // Not a real key: the letters of the alphabet.
    let key = "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY=";
    config("keys", &format!("knoise = \"{key}\"\nsigning = \"{key}\"\npsk_up = \"{key}\"\n"));
    config("keys-short", &format!("knoise = \"{}\"\nsigning = 1\n", &key[..40]));
    config("users", &format!("u[socks_users]\nalice = \"{key}\"\n"));
    for (name, text) in [("name", "dexample.org:443"), ("ipv6", "d[2001:db8::1]:443"), ("listen", "l5000")] {
        config(name, text);
    }
    config("forward", "f127.0.0.1:5000=example.org:443");

    for (i, spec) in [
        "threshold:n=5",
        "threshold:n=64,n_min=3",
        "timed:t=2.5ms",
        "timed:t=100us",
        "threshold-or-timed:n=9,n_min=2,t=1s",
        "threshold-or-timed",
    ]
    .iter()
    .enumerate()
    {
        write("mixing", &format!("good-{i}"), spec.as_bytes());
    }
    write("pymix", "short", &[&[0, 0, 0, 192, 0, 2, 1, 0, 53][..], b"query"].concat());
    write("pymix", "long", &[&[2, 0x10, 0x20, 192, 0, 2, 1, 0x1f, 0x90][..], b"0123456789"].concat());
    write("pymix", "no-port", &[0, 0, 0, 192, 0, 2, 1, 0, 0, 1]);
}

fn main() {
    aead();
    cells();
    frames();
    paced();
    setups_and_acks();
    handshakes();
    descriptors();
    trust();
    texts();
}
