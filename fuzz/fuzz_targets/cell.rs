//! The first look at a datagram: its length against the shape, its block against the header layout.
//! Run with `cargo +nightly fuzz run cell`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::cell::{Block, Class, Direction, Header, MAX_CELL_LEN, Shape};
use wire::link::{ControlKey, HeaderKey};

fuzz_target!(|input: (u8, u8, u8, bool, &[u8])| {
    let (class, hops, link, forward, datagram) = input;
    let Some(class) = Class::from_wire(class % 4) else { return };
    let Ok(shape) = Shape::new(class, usize::from(hops % 10)) else { return };
    let link = 1 + usize::from(link) % shape.hops();
    let direction = if forward { Direction::Forward } else { Direction::Backward };
    let len = shape.cell_len(direction, link);
    assert!(len <= shape.longest_cell() && len <= MAX_CELL_LEN);

    let Some((block, body)) = datagram.split_first_chunk::<16>() else { return };
    if let Ok(header) = Header::from_block(block, class) {
        assert_eq!(header.to_block(), *block);
        let mut body = body.to_vec();
        assert!(ControlKey::new(&[7; 28]).open(&header, &mut body).is_none(), "nobody knows the key");
    }
    let key = HeaderKey::new(&[7; 16]);
    let mut blocks: [Block; 1] = [*block];
    key.decipher(&mut blocks);
    let _ = Header::from_block(&blocks[0], class);
    key.encipher(&mut blocks);
    assert_eq!(blocks[0], *block);
});
