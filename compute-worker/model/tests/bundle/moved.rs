//! Tiles that were taken elsewhere, as an accelerator's backend does.

use std::sync::Arc;

use rookery_kernels::Weights;
use rookery_model::bundle::{Bundle, NoProgress, TileStorage};
use rookery_model::names::{LayerTensor, TensorName};
use rookery_model::pack::Recipe;

use crate::support::{packed, small_config};

#[derive(Debug)]
struct Elsewhere(Vec<u8>);

impl TileStorage for Elsewhere {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

#[test]
fn moved_tiles_are_read_where_they_are_and_the_file_stays_readable() {
    for recipe in [Recipe::W8, Recipe::W4] {
        let (_parent, path) = packed(small_config(), recipe);
        let bundle = Bundle::open(&path, &NoProgress).unwrap();
        let name = TensorName::Layer(0, LayerTensor::FfnDown);
        let mut weights = bundle.linear(name).unwrap();
        let segment = &mut weights.segments[0];
        let (tiles, bytes) = (segment.tiles().to_vec(), segment.bytes());
        let storage = Arc::new(Elsewhere([vec![9; 100], tiles.clone()].concat()));
        let place = storage.0[100..].as_ptr();
        segment.move_tiles(storage, 100);
        assert_eq!((segment.tiles(), segment.tiles().as_ptr()), (tiles.as_slice(), place));
        assert_eq!((segment.view().tile_bytes().as_ptr(), segment.bytes()), (place, bytes));
        assert!(matches!(
            (segment.view(), recipe),
            (Weights::W8(_), Recipe::W8) | (Weights::W4(_), Recipe::W4)
        ));
        // The mapped pages were given back; what they held is read from the file again.
        assert_eq!(bundle.linear(name).unwrap().segments[0].tiles(), tiles);
    }
}
