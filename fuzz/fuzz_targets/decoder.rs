//! Feeds the decoder that FUZZ_TARGET names: see `conclave_tests::decoders`.

#![no_main]

use std::sync::LazyLock;

use conclave_tests::decoders::{Target, target};
use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<Target> =
    LazyLock::new(|| target(&std::env::var("FUZZ_TARGET").expect("FUZZ_TARGET names a decoder")));

fuzz_target!(|data: &[u8]| (TARGET.run)(data));
