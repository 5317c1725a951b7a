//! The real MiniLM-L6 against vectors that Hugging Face's text-embeddings-inference gives (its own stored
//! snapshots), and the contract that a text's vector has the same bits in every company.
//!
//! Needs the assets that `cargo xtask test` prepares, and says "skipped: no assets" without them.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "all of this crate is tests")]

use std::path::PathBuf;

use quadrant_kernels::{Cpu, Team};
use quadrant_llm::{Embedder, Encoder, EncoderConfig, Pooling, parse_safetensors};

/// "What is Deep Learning?" with its first and last token, and something else.
const QUESTION: [u32; 7] = [101, 2054, 2003, 2784, 4083, 1029, 102];
const OTHER: [u32; 4] = [101, 2784, 4083, 102];

fn load() -> Option<Encoder> {
    load_pooling(Pooling::Mean)
}

fn load_pooling(pooling: Pooling) -> Option<Encoder> {
    let Some(assets) = std::env::var_os("QUADRANT_TEST_ASSETS").map(PathBuf::from) else {
        println!("skipped: no assets");
        return None;
    };
    let file = std::fs::read(assets.join("minilm-l6/model.safetensors")).unwrap();
    let config = std::fs::read(assets.join("minilm-l6/config.json")).unwrap();
    let config = EncoderConfig::of_json(&config).unwrap();
    Some(Encoder::of_safetensors(config, pooling, &parse_safetensors(&file).unwrap()).unwrap())
}

fn embedder(encoder: &Encoder, width: usize) -> Embedder {
    let start = |helper| std::thread::Builder::new().spawn(helper).map(drop);
    Embedder::new(encoder, Cpu::best(), Team::new(width, start).unwrap())
}

/// The numbers of a snapshot, one vector.
fn golden(text: &str) -> Vec<f32> {
    let number = |line: &str| line.split_whitespace().last().map(|number| number.parse().unwrap());
    text.lines().filter(|line| line.trim_start().starts_with("- ")).filter_map(number).collect()
}

#[test]
fn vectors_are_those_of_text_embeddings_inference() {
    let single = include_str!("golden/minilm_l6_single.yaml");
    let pooled = include_str!("golden/minilm_l6_single_pooled.yaml");
    let batch = include_str!("golden/minilm_l6_batch_pooled.yaml");
    for (pooling, text, texts) in
        [(Pooling::Mean, single, 1), (Pooling::First, pooled, 1), (Pooling::First, batch, 3)]
    {
        let Some(encoder) = load_pooling(pooling) else { return };
        let expected = golden(text);
        assert_eq!(expected.len(), 384 * texts);
        let found = &embedder(&encoder, 2).run(&encoder, &[&QUESTION])[0];
        // Of the batch the first and the last text are this one.
        for expected in [&expected[..384], &expected[expected.len() - 384..]] {
            let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(off < 1e-3, "{pooling:?}: off by {off}");
        }
    }
}

#[test]
fn vectors_have_the_same_bits_in_every_company() {
    let Some(encoder) = load() else { return };
    let bits = |vector: &[f32]| vector.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    let long: Vec<u32> = (0..200).map(|at| 2_000 + 13 * at).collect();
    let alone = embedder(&encoder, 1).run(&encoder, &[&QUESTION]);
    let long_alone = embedder(&encoder, 1).run(&encoder, &[&long]);
    for width in [1, 2] {
        let mut embedder = embedder(&encoder, width);
        let together = embedder.run(&encoder, &[&OTHER, &long, &[], &QUESTION]);
        assert_eq!(bits(&together[3]), bits(&alone[0]));
        assert_eq!(bits(&together[1]), bits(&long_alone[0]));
        assert!(together[2].iter().all(|value| *value == 0.0));
        let many: Vec<&[u32]> = (0..30).map(|_| &long[..]).chain([&QUESTION[..]]).collect();
        let many = embedder.run(&encoder, &many);
        assert_eq!(bits(&many[30]), bits(&alone[0]), "in the last of several passes");
        let again = embedder.run(&encoder, &[&QUESTION]);
        assert_eq!(bits(&again[0]), bits(&alone[0]), "what was there before does no harm");
    }
}
