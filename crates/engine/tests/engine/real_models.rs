//! The demo models on both engines: the embedded one must agree with ONNX Runtime.

use quadrant_engine::EngineKind;
use quadrant_types::{DataType, Tensor};

use crate::support::{asset_model, floats, lane, load, numbers, run, sample};

/// The largest difference that is allowed, relative to the largest value of the tensor.
const TOLERANCE: f32 = 1e-3;

fn agree(name: &str, inputs: &[Tensor]) {
    let Some(path) = asset_model(name) else { return };
    let [ort, rten] = [EngineKind::Ort, EngineKind::Rten].map(|engine| {
        let model = load(&path, engine).unwrap();
        let mut runner = model.runner(&lane(0, 1)).unwrap();
        run(&model, &mut *runner, inputs.to_vec()).unwrap()
    });
    for (index, (ort, rten)) in ort.iter().zip(&rten).enumerate() {
        assert_eq!((ort.datatype, &ort.shape), (rten.datatype, &rten.shape), "{name}, output {index}");
        if ort.datatype != DataType::Fp32 {
            assert_eq!(ort.data, rten.data, "{name}, output {index}");
            continue;
        }
        let (ort, rten) = (numbers(ort), numbers(rten));
        let largest = ort.iter().fold(0.0_f32, |largest, number| largest.max(number.abs()));
        let apart = ort.iter().zip(&rten).map(|(left, right)| (left - right).abs()).fold(0.0, f32::max);
        println!("{name}, output {index}: {apart:e} apart of {largest:e}");
        assert!(apart <= TOLERANCE * largest, "{name}, output {index}: {apart} apart of {largest}");
    }
}

/// The word "HELLO" in black on white: noise would give a detector of text only zeros to compare.
fn picture(height: usize, width: usize) -> Tensor {
    /// The letters H, E, L, L, O in rows of five pixels.
    const LETTERS: [[u8; 5]; 5] = [
        [0x11, 0x11, 0x1f, 0x11, 0x11],
        [0x1f, 0x10, 0x1e, 0x10, 0x1f],
        [0x10, 0x10, 0x10, 0x10, 0x1f],
        [0x10, 0x10, 0x10, 0x10, 0x1f],
        [0x0e, 0x11, 0x11, 0x11, 0x0e],
    ];
    const SCALE: usize = 4;
    let pixel = |index: usize| {
        let (x, y) = (index % width / SCALE, index / width % height / SCALE);
        let (letter, row) = (x.checked_sub(2).map(|x| x / 6), y.checked_sub(height / SCALE / 2 - 3));
        let row =
            letter.and_then(|letter| LETTERS.get(letter)).zip(row).and_then(|(letter, row)| letter.get(row));
        let is_black = row.is_some_and(|row| (row << ((x - 2) % 6)) & 0x10 != 0);
        if is_black { -2.1 } else { 2.2 }
    };
    floats(&[1, 3, height, width], &(0..3 * height * width).map(pixel).collect::<Vec<_>>())
}

#[test]
fn magika() {
    agree("magika", &[sample(DataType::Int32, &[1, 2048], 1)]);
}

#[test]
fn ppocr() {
    agree("ppocr-det", &[picture(64, 192)]);
    agree("ppocr-cls", &[picture(80, 160)]);
    agree("ppocr-rec", &[picture(48, 160)]);
}

#[test]
fn minilm() {
    agree("minilm-l3", &[1, 2].map(|seed| sample(DataType::Int64, &[1, 24], seed)));
}

#[test]
fn silero() {
    let state = || floats(&[1, 1, 128], &[0.0; 128]);
    agree("silero-vad", &[sample(DataType::Fp32, &[5, 576], 1), state(), state()]);
}
