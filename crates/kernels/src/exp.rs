//! `e^x`, sixteen at a time.
//!
//! By Cody and Waite's reduction ("Software Manual for the Elementary Functions", 1980, chapter 6): `x` is
//! `n ln 2 + r`, `ln 2` in two parts, and `e^r` the Taylor polynomial of degree six, which on
//! `|r| <= ln 2 / 2` is off by 1.2e-7. Together off by less than 4e-7 of the result.

use crate::isa::Isa;

/// Below it the result is zero, which it would be to any use made of it: `e^-87` is 1.6e-38.
const LOWEST: f32 = -87.0;
const HIGHEST: f32 = 88.0;

/// `e^x`: zero below -87, and `e^88` above 88.
#[inline(always)]
pub(crate) fn exp<I: Isa>(isa: I, x: I::Floats) -> I::Floats {
    const LN_2_HIGH: f32 = 0.693_145_75;
    const LN_2_LOW: f32 = 1.428_606_8e-6;
    const COEFFICIENTS: [f32; 5] = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5];
    let bounded = isa.max(isa.splat(LOWEST), isa.min(isa.splat(HIGHEST), x));
    let power = isa.round(isa.mul(bounded, isa.splat(std::f32::consts::LOG2_E)));
    let rest = isa.mul_add(power, isa.splat(-LN_2_HIGH), bounded);
    let rest = isa.mul_add(power, isa.splat(-LN_2_LOW), rest);
    let mut sum = isa.splat(COEFFICIENTS[0]);
    for coefficient in &COEFFICIENTS[1..] {
        sum = isa.mul_add(sum, rest, isa.splat(*coefficient));
    }
    let square = isa.mul(rest, rest);
    let sum = isa.add(isa.mul_add(sum, square, rest), isa.splat(1.0));
    isa.zero_below(isa.scale(sum, power), x, isa.splat(LOWEST))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Plain;

    #[test]
    fn close_to_the_real_one_everywhere() {
        for step in -88_000..88_000 {
            let x = step as f32 / 1000.0;
            let found = f64::from(exp(Plain, [x; 16])[3]);
            let exact = f64::from(x).exp();
            let off = (found - exact).abs() / exact;
            assert!(off < 4e-7 || (x < LOWEST && found == 0.0), "e^{x}: {found}, not {exact}: off by {off}");
        }
        assert_eq!(exp(Plain, [f32::NEG_INFINITY; 16])[0], 0.0);
        assert_eq!(exp(Plain, [0.0; 16])[0], 1.0);
        assert_eq!(exp(Plain, [f32::INFINITY; 16])[0], exp(Plain, [HIGHEST; 16])[0]);
    }
}
