//! What was packed comes out again however it is cut; what is damaged or too dense does not.

use std::io::Write;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const CAPS: UnpackCaps = UnpackCaps { bytes: 64 << 20, ratio: 200 };

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).expect("to memory");
    encoder.finish().expect("to memory")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ::zstd::encode_all(bytes, 3).expect("to memory")
}

fn unpack(packing: Packing, caps: UnpackCaps, packed: &[u8], chunk: usize) -> Result<Vec<u8>, UnpackError> {
    let mut unpacker = Unpacker::new(packing, caps).expect("packed");
    let mut chunks = packed.chunks(chunk).map(Bytes::copy_from_slice);
    let mut whole = Vec::new();
    loop {
        let mut block = Vec::new();
        let step = unpacker.unpack(&mut block)?;
        assert!(block.len() <= BLOCK_BYTES);
        whole.append(&mut block);
        match step {
            Unpacked::Block => {}
            Unpacked::Hungry => unpacker.feed(chunks.next()),
            Unpacked::End => return Ok(whole),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn what_was_packed_comes_out_however_it_is_cut(bytes in vec(0u8..16, 0..5000), chunk in 1usize..300, twice in any::<bool>()) {
        // Files of several members are one file.
        let times = if twice { 2 } else { 1 };
        for (packing, packed) in [(Packing::Gzip, gzip(&bytes)), (Packing::Zstd, zstd(&bytes))] {
            let unpacked = unpack(packing, CAPS, &packed.repeat(times), chunk);
            prop_assert_eq!(unpacked.as_deref(), Ok(&bytes.repeat(times)[..]));
        }
    }

    #[test]
    fn what_is_cut_short_is_damaged(bytes in vec(any::<u8>(), 100..2000), at in any::<prop::sample::Index>()) {
        for (packing, packed) in [(Packing::Gzip, gzip(&bytes)), (Packing::Zstd, zstd(&bytes))] {
            let end = 1 + at.index(packed.len() - 1);
            let unpacked = unpack(packing, CAPS, &packed[..end], 64);
            prop_assert!(matches!(unpacked, Err(UnpackError::Damaged { .. })), "{:?}", unpacked);
        }
    }
}

#[test]
fn a_bomb_stops_at_the_caps() {
    let zeros = vec![0; 32 << 20];
    for (packing, packed) in [(Packing::Gzip, gzip(&zeros)), (Packing::Zstd, zstd(&zeros))] {
        let dense = unpack(packing, CAPS, &packed, 4096);
        assert_eq!(dense, Err(UnpackError::TooDense { limit: 200 }));
        let much = unpack(packing, UnpackCaps { bytes: 8 << 20, ratio: 1 << 40 }, &packed, 4096);
        assert_eq!(much, Err(UnpackError::TooMuch { limit: 8 << 20 }));
        assert!(unpack(packing, UnpackCaps { bytes: 32 << 20, ratio: 1 << 40 }, &packed, 4096).is_ok());
    }
}

#[test]
fn names_tell_how_an_object_is_packed() {
    assert_eq!(Packing::of("texts.jsonl.gz"), Packing::Gzip);
    assert_eq!(Packing::of("texts.jsonl.zst"), Packing::Zstd);
    assert_eq!(Packing::of("texts.jsonl"), Packing::Plain);
    assert_eq!(Packing::of("gz"), Packing::Plain);
}
