#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| bulkhead_ebpf_fuzz::verdict(input));
