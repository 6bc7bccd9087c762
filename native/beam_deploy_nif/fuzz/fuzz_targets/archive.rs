#![no_main]
//! Whatever a tar holds, nothing appears outside of the destination, nothing stays after a failure, and no link
//! that was made leads out. `cargo +nightly fuzz run archive`

use std::fs;
use std::io::Write;
use std::path::Path;

use beam_deploy_nif::archive::{extract_from, Limits};
use libfuzzer_sys::fuzz_target;

const LIMITS: Limits = Limits {
    max_bytes: 1 << 20,
    max_entries: 200,
    max_ratio: 200,
    ratio_from: 1 << 16,
};

fuzz_target!(|tar: &[u8]| {
    let jail = tempfile::tempdir_in("/dev/shm").unwrap();
    let previous = jail.path().join("previous");
    let destination = jail.path().join("out");
    fs::create_dir(&previous).unwrap();
    fs::write(previous.join("a.beam"), "a").unwrap();

    // The first byte chooses between damage to the compression and damage to what it holds.
    let compressed = match tar.split_first() {
        Some((0, rest)) => rest.to_vec(),
        Some((_, rest)) => gzip(&with_checksums(rest)),
        None => return,
    };
    let result = extract_from(
        compressed.as_slice(),
        &destination,
        Some(&previous),
        &LIMITS,
    );

    assert_eq!(destination.exists(), result.is_ok());
    assert_eq!(
        fs::read_dir(jail.path()).unwrap().count(),
        1 + usize::from(result.is_ok())
    );
    assert_eq!(fs::read_dir(&previous).unwrap().count(), 1);
    assert_eq!(fs::read(previous.join("a.beam")).unwrap(), b"a");
    if result.is_ok() {
        check(&destination.canonicalize().unwrap(), &destination);
    }
});

fn check(root: &Path, directory: &Path) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_symlink() {
            if let Ok(resolved) = path.canonicalize() {
                assert!(resolved.starts_with(root), "{path:?} leads to {resolved:?}");
            }
        } else if kind.is_dir() {
            check(root, &path);
        } else {
            assert!(kind.is_file());
        }
    }
}

/// A header is read only when its checksum is right, which chance does not bring about.
fn with_checksums(tar: &[u8]) -> Vec<u8> {
    let mut tar = tar.to_vec();
    tar.resize(tar.len().div_ceil(512) * 512 + 1024, 0);
    let mut at = 0;
    while at + 512 <= tar.len() {
        let header = &mut tar[at..at + 512];
        if header.iter().all(|&byte| byte == 0) {
            break;
        }
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let size = std::str::from_utf8(&header[124..135])
            .ok()
            .and_then(|digits| usize::from_str_radix(digits.trim_matches(['\0', ' ']), 8).ok())
            .unwrap_or(0);
        at += 512 + size.min(1 << 20).div_ceil(512) * 512;
    }
    tar
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
