//! A datagram of a paced class: its header block, the link tag of a data cell, the content of a control
//! cell, and what a type 3 cell says of clocks, places and company. Or the file with the secret of a meeting.

#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::cell::{Block, CellKind, Class};
use wire::gcm::PolyvalKey;
use wire::link::{ControlKey, LinkContent};
use wire::paced::clock::{CLOCK_LEN, ClockCell, Exchange};
use wire::paced::{COMPANY_LEN, Company, MeetingSecret, PacedClass, PacedHeader, REPORT_LEN, Report, SLOT_ROUNDS};

fuzz_target!(|input: (u8, bool, u64, &[u8])| {
    let (choice, is_known, running, bytes) = input;
    let size = match choice % 4 {
        0 => Class::S,
        1 => Class::M,
        2 => Class::L,
        _ => return meeting(bytes),
    };
    datagram(PacedClass::new(size), is_known.then_some(running % (1 << 40)), bytes);
});

fn datagram(class: PacedClass, running: Option<u64>, datagram: &[u8]) {
    assert_eq!(PacedClass::from_wire(class.number()), Some(class));
    assert!(!wire::handshake::is_handshake_len(class.cell_len()), "length alone tells cells from handshakes");

    let Some((block, rest)) = datagram.split_first_chunk::<16>() else { return };
    let read = PacedHeader::from_block(block, class, running);
    let seq = block[4..9].iter().fold(0, |seq, byte| seq << 8 | u64::from(*byte));
    let is_near = running.is_some_and(|running| seq.abs_diff(running) <= SLOT_ROUNDS);
    let fits = if block[10] == 0 { is_near } else { block[10] < 4 && block[12..] == [0; 4] };
    assert_eq!(read.is_some(), fits && block[11] == class.number());
    let Some(header) = read else { return };
    assert_eq!(header.to_block(), *block);
    assert_eq!((header.channel.to_be_bytes(), header.seq, header.sub), ([0, 1, 2, 3].map(|i| block[i]), seq, block[9]));

    let mut body = rest.to_vec();
    body.resize(class.body_len(), 0);
    let at = rest.iter().fold(0, |at, byte| (at * 31 + usize::from(*byte)) % body.len());
    if header.kind == CellKind::Data {
        let key = PolyvalKey::prepare(&[7; 16]);
        let sound = PacedHeader { tag: key.link_tag(&body), ..header };
        assert_eq!(header.is_tag_of(&key, &body), header == sound);
        assert!(sound.is_tag_of(&key, &body));
        body[at] ^= 1 << (rest.len() % 8);
        assert!(!sound.is_tag_of(&key, &body), "byte {at} flipped");
    } else {
        control(block, body, at);
        link_cell(rest);
    }
}

/// The body of a control cell opens only under its own header and only if it is unchanged.
fn control(block: &Block, mut body: Vec<u8>, at: usize) {
    let key = ControlKey::new(&[7; 28]);
    assert!(key.open_under(block, &mut body.clone()).is_none(), "nobody knows the key");
    let content = body[..body.len() - 16].to_vec();
    key.seal_under(block, &mut body);
    assert_eq!(key.open_under(block, &mut body.clone()).as_deref(), Some(&content[..]));
    let mut other = *block;
    other[8] ^= 1;
    assert!(key.open_under(&other, &mut body.clone()).is_none(), "another number");
    body[at] ^= 1;
    assert!(key.open_under(block, &mut body).is_none(), "byte {at} flipped");
}

/// Type 3 cells, one after another: their kind, and bytes for each of the codecs.
fn link_cell(mut contents: &[u8]) {
    let (mut exchange, mut latest) = (Exchange::default(), Report::default());
    while let Some((kind, rest)) = contents.split_first() {
        assert!(LinkContent::from_wire(*kind).is_none_or(|known| known as u8 == *kind));
        let Some((bytes, next)) = rest.split_first_chunk::<{ 8 + CLOCK_LEN }>() else { return };
        contents = next;

        let (now, bytes) = bytes.split_first_chunk::<8>().expect("8 bytes");
        let clock = ClockCell::from_bytes(bytes.first_chunk::<CLOCK_LEN>().expect("a clock cell"));
        assert_eq!(clock.to_bytes(), bytes);
        exchange.take(clock, u64::from_le_bytes(*now));
        let (sent, _) = exchange.latest().expect("a cell was taken");
        assert!(sent >= clock.sent, "of all cells the latest by its time is answered");

        let bytes = bytes.first_chunk::<REPORT_LEN>().expect("a report");
        let report = Report::from_bytes(bytes);
        assert_eq!(report.to_bytes(), *bytes);
        match report.since(latest) {
            Some(all) if report.first != latest.first => assert_eq!(all, report),
            Some(more) => {
                assert_eq!((more.first, more.last), (latest.last + 1, report.last));
                assert!(more.first <= more.last);
                assert_eq!(more.places.wrapping_add(latest.places), report.places);
                assert_eq!(more.filled.wrapping_add(latest.filled), report.filled);
                assert_eq!(more.lost.wrapping_add(latest.lost), report.lost);
            }
            None => assert!(report.first == latest.first && report.last <= latest.last),
        }
        latest = report;

        let bytes = bytes.first_chunk::<COMPANY_LEN>().expect("a company cell");
        assert_eq!(Company::from_bytes(bytes).to_bytes(), *bytes);
    }
}

/// A text is a secret only if it is the prefix, 64 digits and at most one end of line.
fn meeting(text: &[u8]) {
    let Ok(text) = str::from_utf8(text) else { return };
    let line = text.strip_suffix('\n').unwrap_or(text);
    let digits = line.strip_prefix("eddy-meet-1:");
    let is_secret = digits.is_some_and(|digits| digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit()));
    match text.parse::<MeetingSecret>() {
        Ok(secret) => {
            assert!(is_secret);
            let written = secret.to_text();
            assert!(written.trim_end().eq_ignore_ascii_case(line) && written.ends_with('\n'));
            let again: MeetingSecret = written.parse().expect("what was written is read");
            let token =
                |secret: &MeetingSecret, first| secret.meeting(&[7; 32], PacedClass::new(Class::S), first).token;
            assert_eq!(token(&secret, 2048), token(&again, 2048));
            assert_ne!(token(&secret, 2048), token(&secret, 4096), "batches have tokens of their own");
        }
        Err(why) => {
            assert!(!is_secret);
            let shown = why.to_string();
            assert!(!shown.contains('\n'));
            assert!(digits.is_none_or(|digits| digits.len() < 8 || !shown.contains(digits)), "{shown}");
        }
    }
}
