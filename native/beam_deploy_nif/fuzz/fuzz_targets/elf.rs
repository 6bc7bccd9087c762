#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    beam_deploy_nif::elf::facts(bytes);
});
