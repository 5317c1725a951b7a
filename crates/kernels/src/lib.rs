//! The inner loops of a transformer: products of quantised matrices, and what lies between them.
//!
//! Every loop is written once, over an instruction set of sixteen lanes, and compiled for each ([`Cpu`]):
//! plain Rust, which runs everywhere and is the oracle, AVX2, and AVX-512 with VNNI, chosen at run time. As
//! all do the same operations in the same order, they give the same bits.
//!
//! *The contract*: what is computed for a row does not depend, in a single bit, on how many rows are
//! computed with it, on how columns and heads are shared among cores, or on the size of a page. The inner
//! dimension is never split, and the order of accumulation is fixed.
//!
//! Nothing here knows a file format, a scheduler or a clock.

mod attention;
mod bell;
mod cache;
mod cpu;
mod encoding;
mod exp;
mod format;
mod gate;
mod gelu;
mod isa;
mod layer_norm;
mod matrix;
mod norm;
mod product;
mod rope;
mod rows;
mod slab;
mod team;
mod tiles;

pub use attention::{Attention, Query, Scratch};
pub use bell::Bell;
pub use cache::{Cache, CacheShape, CacheSlot, GROUP, Precision, TilesRow};
pub use cpu::Cpu;
pub use encoding::Encoding;
pub use gate::silu_gate;
pub use gelu::gelu;
pub use layer_norm::layer_norm;
pub use matrix::{Matrix, MatrixError};
pub use norm::RmsNorm;
pub use product::multiply;
pub use rope::{Angles, rotate};
pub use rows::{Rows, RowsPart, copy, copy_tiles};
pub use slab::Slab;
pub use team::{GiveWay, Helper, Team};
pub use tiles::{TILE, Tiles, TilesPart};
