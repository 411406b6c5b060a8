//! Bit for bit against what the reference implementation of the format wrote into the fixtures.

use std::path::PathBuf;

use super::StorageType;

const ALL: [StorageType; 11] = [
    StorageType::F32,
    StorageType::F16,
    StorageType::BF16,
    StorageType::Q4_0,
    StorageType::Q4_1,
    StorageType::Q5_0,
    StorageType::Q5_1,
    StorageType::Q8_0,
    StorageType::Q4_K,
    StorageType::Q5_K,
    StorageType::Q6_K,
];

fn fixture(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/import").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn every_type_decodes_to_the_reference_bits() {
    for storage in ALL {
        let name = storage.name().to_lowercase();
        let stored = fixture(&format!("{name}.blocks"));
        let expected: Vec<u32> = fixture(&format!("{name}.f32"))
            .as_chunks::<4>()
            .0
            .iter()
            .map(|&bytes| u32::from_le_bytes(bytes))
            .collect();
        assert!(expected.len() >= 2048, "{storage:?}: fixture too small to mean anything");
        let mut decoded = vec![0.0; expected.len()];
        storage.decode(&stored, &mut decoded);
        for (i, (got, want)) in decoded.iter().zip(&expected).enumerate() {
            assert_eq!(
                got.to_bits(),
                *want,
                "{storage:?} value {i}: {got} against {}",
                f32::from_bits(*want)
            );
        }
    }
}

#[test]
fn a_bad_scale_shows_in_the_values() {
    // f16 infinity and NaN in place of each block scale; zero quants hide neither.
    for (storage, offsets) in [
        (StorageType::Q4_0, &[0][..]),
        (StorageType::Q4_1, &[0, 2]),
        (StorageType::Q5_0, &[0]),
        (StorageType::Q5_1, &[0, 2]),
        (StorageType::Q8_0, &[0]),
        (StorageType::Q4_K, &[0, 2]),
        (StorageType::Q5_K, &[0, 2]),
        (StorageType::Q6_K, &[208]),
    ] {
        for &offset in offsets {
            for bits in [0x7C00_u16, 0xFC00, 0x7E00] {
                let mut block = vec![0; storage.block_bytes()];
                block[offset..offset + 2].copy_from_slice(&bits.to_le_bytes());
                let mut values = vec![0.0_f32; storage.block_values()];
                storage.decode(&block, &mut values);
                assert!(
                    values.iter().any(|value| !value.is_finite()),
                    "{storage:?} at {offset} with {bits:#x}"
                );
            }
        }
    }
}

#[test]
fn sizes_match_the_numbers_in_gguf() {
    for storage in ALL {
        let mut values = vec![0.0; storage.block_values()];
        storage.decode(&vec![0; storage.block_bytes()], &mut values);
        assert!(StorageType::SUPPORTED.split(", ").any(|name| name == storage.name()));
    }
    let readable: Vec<_> = (0..64).filter_map(StorageType::from_gguf).collect();
    assert_eq!(readable.len(), ALL.len());
}
