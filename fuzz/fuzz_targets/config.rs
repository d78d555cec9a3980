#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    reattention_model::fuzzing::config(data);
});
