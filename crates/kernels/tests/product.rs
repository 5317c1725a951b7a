//! Products against plain double precision, and the contract: the same bits whatever shares the product.

#![expect(clippy::unwrap_used, reason = "all of this crate is tests")]

use fastrand::Rng;
use half::{bf16, f16};
use quadrant_kernels::{Cpu, Encoding, Matrix, MatrixError, Rows, Slab, Tiles, copy, multiply};

/// A matrix of random weights as a file has it, and what its numbers are.
fn weights(rng: &mut Rng, encoding: Encoding, outputs: usize, inner: usize) -> (Vec<u8>, Vec<f64>) {
    let (mut bytes, mut numbers) = (Vec::new(), Vec::new());
    let float = |rng: &mut Rng| rng.f32() * 2.0 - 1.0;
    for _ in 0..outputs * inner / encoding.block() {
        match encoding {
            Encoding::F32 => {
                let number = float(rng);
                bytes.extend(number.to_le_bytes());
                numbers.push(f64::from(number));
            }
            Encoding::F16 => {
                let number = f16::from_f32(float(rng));
                bytes.extend(number.to_le_bytes());
                numbers.push(number.to_f64());
            }
            Encoding::Bf16 => {
                let number = bf16::from_f32(float(rng));
                bytes.extend(number.to_le_bytes());
                numbers.push(number.to_f64());
            }
            Encoding::Q4_0 | Encoding::Q4_1 | Encoding::Q8_0 => {
                block(rng, encoding, &mut bytes, &mut numbers);
            }
        }
    }
    (bytes, numbers)
}

/// Packs a matrix into a slab of its own.
fn pack(encoding: Encoding, outputs: usize, inner: usize, bytes: &[u8]) -> Result<Matrix, MatrixError> {
    let slab = Slab::new(Matrix::packed_bytes(encoding, outputs.min(1 << 20), inner)).unwrap();
    Matrix::pack(&slab, encoding, outputs, inner, bytes)
}

/// One quantised block, by the definition of its encoding.
fn block(rng: &mut Rng, encoding: Encoding, bytes: &mut Vec<u8>, numbers: &mut Vec<f64>) {
    let scale = f16::from_f32(rng.f32() * 0.1);
    let minimum = f16::from_f32(-rng.f32());
    bytes.extend(scale.to_le_bytes());
    if encoding == Encoding::Q4_1 {
        bytes.extend(minimum.to_le_bytes());
    }
    if encoding == Encoding::Q8_0 {
        let values: Vec<i8> = (0..32).map(|_| rng.i8(..)).collect();
        bytes.extend(values.iter().map(|value| value.cast_unsigned()));
        numbers.extend(values.iter().map(|value| scale.to_f64() * f64::from(*value)));
        return;
    }
    let values: Vec<u8> = (0..32).map(|_| rng.u8(..16)).collect();
    bytes.extend((0..16).map(|index| values[index] | values[index + 16] << 4));
    let offset = if encoding == Encoding::Q4_1 { minimum.to_f64() } else { -8.0 * scale.to_f64() };
    numbers.extend(values.iter().map(|value| scale.to_f64() * f64::from(*value) + offset));
}

fn random(rng: &mut Rng, count: usize, inner: usize) -> Vec<f32> {
    (0..count * inner).map(|_| rng.f32() * 4.0 - 2.0).collect()
}

/// The product of rows, each `matrix.inner()` numbers, with a matrix: `[row][output]`.
fn product(cpu: Cpu, matrix: &Matrix, values: &[f32]) -> Vec<f32> {
    let mut rows = Rows::new(matrix.inner(), [matrix.encoding()]);
    rows.resize(values.len() / matrix.inner());
    copy(cpu, values, matrix.inner(), rows.all());
    let mut out = Tiles::default();
    out.resize(rows.count(), matrix.outputs());
    multiply(cpu, &[matrix], &rows, out.all(), false);
    (0..rows.count()).flat_map(|row| out.row(row).take(matrix.outputs()).collect::<Vec<_>>()).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn products_are_those_of_the_definition() {
    let mut rng = Rng::with_seed(1);
    for encoding in Encoding::ALL {
        for (outputs, inner, count) in [(16, 32, 1), (40, 96, 3), (33, 576, 7), (5, 64, 31), (64, 1536, 17)] {
            let (bytes, numbers) = weights(&mut rng, encoding, outputs, inner);
            let matrix = pack(encoding, outputs, inner, &bytes).unwrap();
            let rows = random(&mut rng, count, inner);
            let found = product(Cpu::best(), &matrix, &rows);
            for row in 0..count {
                let values = &rows[row * inner..][..inner];
                for output in 0..outputs {
                    let numbers = &numbers[output * inner..][..inner];
                    let products = values.iter().zip(numbers).map(|(a, b)| f64::from(*a) * b);
                    let exact: f64 = products.clone().sum();
                    // A quantised value is off by at most half a step, 2 / 254 here, a random walk of which
                    // is far below its sum; floats are off by their own rounding only.
                    let step = if encoding.block() > 1 { 2.0 / 254.0 } else { 1e-6 };
                    let magnitude: f64 = numbers.iter().map(|number| number * number).sum();
                    let allowed = 5.0 * step * magnitude.sqrt() + 1e-6 * products.map(f64::abs).sum::<f64>();
                    let off = (f64::from(found[row * outputs + output]) - exact).abs();
                    assert!(
                        off <= allowed,
                        "{encoding:?} {outputs}x{inner}: off by {off}, allowed {allowed}"
                    );
                }
            }
        }
    }
}

#[test]
fn what_is_quantised_exactly_is_multiplied_exactly() {
    // Integers with 127 among them have the scale 1, so only sums of integers are left.
    let mut rng = Rng::with_seed(2);
    let (outputs, inner) = (32, 128);
    for encoding in [Encoding::Q4_0, Encoding::Q4_1, Encoding::Q8_0] {
        let one = f16::from_f32(1.0).to_le_bytes();
        let mut bytes = Vec::new();
        for _ in 0..outputs * inner / 32 {
            bytes.extend(one);
            if encoding == Encoding::Q4_1 {
                bytes.extend(f16::from_f32(-3.0).to_le_bytes());
            }
            let rest = encoding.block_bytes() - if encoding == Encoding::Q4_1 { 4 } else { 2 };
            bytes.extend((0..rest).map(|_| rng.u8(..)));
        }
        let matrix = pack(encoding, outputs, inner, &bytes).unwrap();
        let number =
            |index: usize| if index.is_multiple_of(32) { 127.0 } else { f32::from(rng.i8(-127..=127)) };
        let rows: Vec<f32> = (0..2 * inner).map(number).collect();
        let number = |output: usize, index: usize| -> f32 {
            let block = &bytes[(output * inner + index) / 32 * encoding.block_bytes()..];
            let index = index % 32;
            let nibble = |skip: usize| {
                if index < 16 { block[skip + index] & 15 } else { block[skip + index - 16] >> 4 }
            };
            if encoding == Encoding::Q8_0 {
                f32::from(block[2 + index].cast_signed())
            } else if encoding == Encoding::Q4_0 {
                f32::from(nibble(2)) - 8.0
            } else {
                f32::from(nibble(4)) - 3.0
            }
        };
        let found = product(Cpu::best(), &matrix, &rows);
        for row in 0..2 {
            for output in 0..outputs {
                let exact: f32 = (0..inner).map(|at| number(output, at) * rows[row * inner + at]).sum();
                assert_eq!(found[row * outputs + output], exact, "{encoding:?} row {row} output {output}");
            }
        }
    }
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    let mut rng = Rng::with_seed(3);
    for encoding in Encoding::ALL {
        let (outputs, inner, count) = (48, 160, 23);
        let (bytes, _) = weights(&mut rng, encoding, outputs, inner);
        let matrix = pack(encoding, outputs, inner, &bytes).unwrap();
        let rows = random(&mut rng, count, inner);
        let found = Cpu::all().into_iter().map(|cpu| bits(&product(cpu, &matrix, &rows)));
        let found: Vec<_> = found.collect();
        assert!(found.windows(2).all(|pair| pair[0] == pair[1]), "{encoding:?}");
    }
}

#[test]
fn a_row_does_not_depend_on_its_neighbours_or_on_who_computes_a_tile() {
    let mut rng = Rng::with_seed(4);
    let (outputs, inner) = (80, 192);
    for encoding in Encoding::ALL {
        let (bytes, _) = weights(&mut rng, encoding, outputs, inner);
        let matrix = pack(encoding, outputs, inner, &bytes).unwrap();
        let all = random(&mut rng, 37, inner);
        let together = product(Cpu::best(), &matrix, &all);
        for (first, count) in [(0, 1), (5, 1), (36, 1), (1, 2), (9, 8), (3, 33)] {
            let alone = product(Cpu::best(), &matrix, &all[first * inner..][..count * inner]);
            let same = &together[first * outputs..][..count * outputs];
            assert_eq!(bits(&alone), bits(same), "{encoding:?}: {count} rows from {first}");
        }
        let mut rows = Rows::new(inner, [encoding]);
        rows.resize(37);
        let (low, high) = rows.all().split(1);
        for part in [high, low] {
            copy(Cpu::best(), &all, inner, part);
        }
        let mut out = Tiles::default();
        out.resize(37, outputs);
        let (first, rest) = out.all().split(2);
        let (second, third) = rest.split(1);
        for part in [third, first, second] {
            multiply(Cpu::best(), &[&matrix], &rows, part, false);
        }
        let apart: Vec<f32> = (0..37).flat_map(|row| out.row(row).collect::<Vec<_>>()).collect();
        assert_eq!(bits(&apart), bits(&together), "{encoding:?}");
    }
}

#[test]
fn rows_of_zeros_and_of_the_smallest_numbers_are_zero() {
    let mut rng = Rng::with_seed(5);
    let (bytes, _) = weights(&mut rng, Encoding::Q4_1, 16, 64);
    let matrix = pack(Encoding::Q4_1, 16, 64, &bytes).unwrap();
    for value in [0.0, f32::MIN_POSITIVE / 2.0, -0.0] {
        assert!(product(Cpu::best(), &matrix, &[value; 64]).iter().all(|result| *result == 0.0), "{value}");
    }
}

#[test]
fn what_is_no_such_matrix_is_refused() {
    let blocks = pack(Encoding::Q4_0, 1, 33, &[0; 18]).unwrap_err();
    assert_eq!(blocks, MatrixError::Blocks { encoding: Encoding::Q4_0, inner: 33 });
    assert_eq!(blocks.to_string(), "rows of `33` numbers are not whole blocks of `32`");
    let bytes = pack(Encoding::Q4_0, 2, 32, &[0; 18]).unwrap_err();
    assert_eq!(bytes, MatrixError::Bytes { found: 18, outputs: 2, inner: 32 });
    let overflow = pack(Encoding::F32, usize::MAX, 32, &[0; 18]).unwrap_err();
    assert_eq!(overflow, MatrixError::Bytes { found: 18, outputs: usize::MAX, inner: 32 });
    assert_eq!(pack(Encoding::F32, 0, 32, &[]).unwrap().tiles(), 0);
    let slab = Slab::new(2 * 9 * 64).unwrap();
    let row = [0; 18];
    assert_eq!(Matrix::packed_bytes(Encoding::Q4_0, 1, 32), 9 * 64);
    for _ in 0..2 {
        assert_eq!(Matrix::pack(&slab, Encoding::Q4_0, 1, 32, &row).unwrap().bytes(), 9 * 64);
    }
    let room = Matrix::pack(&slab, Encoding::Q4_0, 1, 32, &row).unwrap_err();
    assert_eq!(room, MatrixError::Room { wanted: 9 * 64, slab: 2 * 9 * 64 });
}

#[test]
fn matrices_follow_each_other_and_results_are_added() {
    let mut rng = Rng::with_seed(6);
    let inner = 64;
    let sizes = [(Encoding::Q4_1, 48), (Encoding::F16, 16), (Encoding::Q8_0, 40)];
    let matrices = sizes.map(|(encoding, outputs)| {
        let (bytes, numbers) = weights(&mut rng, encoding, outputs, inner);
        let matrix = pack(encoding, outputs, inner, &bytes).unwrap();
        for output in 0..outputs {
            let exact = &numbers[output * inner..][..inner];
            let found = matrix.row(output);
            let off = found.iter().zip(exact).map(|(a, b)| (f64::from(*a) - b).abs());
            assert!(off.fold(0.0, f64::max) < 1e-6, "row {output} of {encoding:?}");
        }
        matrix
    });
    let all = random(&mut rng, 3, inner);
    let mut rows = Rows::new(inner, matrices.iter().map(Matrix::encoding));
    rows.resize(3);
    copy(Cpu::best(), &all, inner, rows.all());
    let [a, b, c] = matrices.each_ref();
    for cut in 1..7 {
        let mut out = Tiles::default();
        out.resize(3, 48 + 16 + 48);
        let mut all_of_it = out.all();
        all_of_it.tiles().for_each(|(_, rows)| rows.as_flattened_mut().fill(0.5));
        let (low, high) = all_of_it.split(cut);
        multiply(Cpu::best(), &[a, b, c], &rows, high, true);
        multiply(Cpu::best(), &[a, b, c], &rows, low, true);
        let mut first = 0;
        for matrix in [a, b, c] {
            let alone = product(Cpu::best(), matrix, &all);
            for row in 0..3 {
                for output in 0..matrix.outputs() {
                    let expected = 0.5 + alone[row * matrix.outputs() + output];
                    assert_eq!(
                        out.at(row, first + output),
                        expected,
                        "cut at {cut}, row {row}, output {output}"
                    );
                }
            }
            first += matrix.tiles() * 16;
        }
    }
}
