//! A datagram: its length is compared with the shape, and its header block with the layout. The body of a
//! control cell opens only under its own header and only if it is unchanged.

#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::cell::{BadHeader, Block, Class, Direction, Header, MAX_CELL_LEN, Shape};
use wire::link::{ControlKey, HeaderKey};

fuzz_target!(|input: (u8, u8, u8, bool, &[u8])| {
    let (class, hops, link, forward, datagram) = input;
    let Some(class) = Class::from_wire(class % 4) else { return };
    let Ok(shape) = Shape::new(class, usize::from(hops % 10)) else { return };
    let link = 1 + usize::from(link) % shape.hops();
    let direction = if forward { Direction::Forward } else { Direction::Backward };
    let len = shape.cell_len(direction, link);
    assert!(len <= shape.longest_cell() && len <= MAX_CELL_LEN);
    assert!(!wire::handshake::is_handshake_len(len), "length alone tells cells from handshakes");
    let layers = if forward { shape.hops() - link + 1 } else { 1 };
    assert_eq!(len, 16 + shape.payload() + 16 * layers);
    assert_eq!(shape.control_content(direction, link), len - 32);

    let Some((block, body)) = datagram.split_first_chunk::<16>() else { return };
    let header = match Header::from_block(block, class) {
        Ok(header) => {
            assert!(block[12..] == [0; 4] && block[11] == class as u8 && block[10] < 4);
            assert_eq!(header.channel.to_be_bytes(), block[..4]);
            assert_eq!(header.seq.to_be_bytes(), [&[0; 3], &block[4..9]].concat()[..]);
            assert_eq!((header.sub, header.kind as u8, header.class), (block[9], block[10], class));
            assert_eq!(header.to_block(), *block);
            header
        }
        Err(why) => {
            let first = match (block[12..] == [0; 4], block[11] == class as u8) {
                (false, _) => BadHeader::Zero,
                (true, false) => BadHeader::Class,
                (true, true) => BadHeader::Kind,
            };
            assert_eq!(why, first);
            return;
        }
    };

    let key = HeaderKey::new(&[7; 16]);
    let mut blocks: [Block; 1] = [*block];
    key.decipher(&mut blocks);
    let _ = Header::from_block(&blocks[0], class);
    key.encipher(&mut blocks);
    assert_eq!(blocks[0], *block);

    let control = ControlKey::new(&[7; 28]);
    assert!(control.open(&header, &mut body.to_vec()).is_none(), "nobody knows the key");
    let mut sealed = vec![0; len - 16];
    sealed.iter_mut().zip(body).for_each(|(byte, content)| *byte = *content);
    let content = sealed[..len - 32].to_vec();
    control.seal(&header, &mut sealed);
    assert_eq!(control.open(&header, &mut sealed.clone()).as_deref(), Some(&content[..]));
    let other = Header { seq: (header.seq + 1) % (1 << 40), ..header };
    assert!(control.open(&other, &mut sealed.clone()).is_none(), "another number");
    let at = body.iter().fold(0, |at, byte| (at * 31 + usize::from(*byte)) % sealed.len());
    sealed[at] ^= 1 << (body.len() % 8);
    assert!(control.open(&header, &mut sealed).is_none(), "byte {at} flipped");
});
