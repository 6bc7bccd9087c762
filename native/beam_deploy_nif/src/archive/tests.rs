use std::io::Write;
use std::path::PathBuf;

use super::*;

const LIMITS: Limits = Limits {
    max_bytes: 1 << 30,
    max_entries: 1000,
    max_ratio: 200,
    ratio_from: 1 << 20,
};

/// A directory with a tarball of the given files in it.
fn packed(files: &[(&str, &[u8])]) -> Result<(tempfile::TempDir, PathBuf), Error> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("release.tar.gz");
    let gzip = flate2::write::GzEncoder::new(File::create(&path)?, flate2::Compression::fast());
    let mut tar = tar::Builder::new(gzip);
    for (name, contents) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, *contents)?;
    }
    tar.into_inner()?.finish()?.flush()?;
    Ok((directory, path))
}

#[test]
fn what_went_in_comes_out() -> Result<(), Error> {
    let long = "deep/".repeat(60) + "file";
    let large = vec![7; 3 * CHUNK + 1];
    let (directory, archive) = packed(&[("a/b", b"one"), (&long, b"two"), ("large", &large)])?;
    let destination = directory.path().join("out");
    let extracted = extract(&archive, &destination, None, &LIMITS)?;
    assert_eq!(extracted.files, 3);
    assert_eq!(std::fs::read(destination.join("a/b"))?, b"one");
    assert_eq!(std::fs::read(destination.join(&long))?, b"two");
    assert_eq!(std::fs::read(destination.join("large"))?, large);

    let second = directory.path().join("second");
    let mut changed = large.clone();
    if let Some(last) = changed.last_mut() {
        *last = 8;
    }
    let (_other, archive) = packed(&[("x.beam", b"one"), ("large.so", &changed)])?;
    let first = directory.path().join("first");
    extract(&archive, &first, None, &LIMITS)?;
    let again = extract(&archive, &second, Some(&first), &LIMITS)?;
    assert_eq!(again.linked, 2);

    let (_third, archive) = packed(&[("x.beam", b"two"), ("large.so", &large)])?;
    let third = directory.path().join("third");
    assert_eq!(extract(&archive, &third, Some(&first), &LIMITS)?.linked, 0);
    assert_eq!(std::fs::read(third.join("large.so"))?, large);
    assert_eq!(std::fs::read(first.join("large.so"))?, changed);
    Ok(())
}

#[test]
fn a_failure_leaves_nothing() -> Result<(), Error> {
    let (directory, archive) = packed(&[("a", b"one"), ("b", &[0; 100_000])])?;
    let whole = std::fs::read(&archive)?;
    std::fs::write(&archive, whole.get(..whole.len() - 9).unwrap_or_default())?;
    let destination = directory.path().join("out");
    assert!(extract(&archive, &destination, None, &LIMITS).is_err());
    assert!(!destination.exists());

    std::fs::create_dir(&destination)?;
    assert!(extract(&archive, &destination, None, &LIMITS).is_err());
    assert!(destination.exists(), "not ours to delete");
    Ok(())
}

#[test]
fn pax_records() {
    let record = |text: &'static [u8]| pax_record(text);
    assert_eq!(record(b"9 a=bcd\n"), None);
    assert_eq!(
        record(b"8 a=bcd\nX"),
        Some((&b"a"[..], &b"bcd"[..], &b"X"[..]))
    );
    assert_eq!(
        record(b"7 a=bcd\nX"),
        Some((&b"a"[..], &b"bcd"[..], &b"X"[..]))
    );
    for broken in [
        &b""[..],
        b"0 ",
        b"99999999999999999999 a=b\n",
        b"1 \n",
        b"3 \n\n",
        b"5 abc\n",
        b"2\n a=b",
    ] {
        assert_eq!(pax_record(broken), None, "{broken:?}");
    }
}

#[test]
fn names_are_made_relative_or_refused() {
    assert_eq!(relative(b"./a//b/./c/"), Ok(b"a/b/c".to_vec()));
    assert_eq!(relative(b"./"), Ok(Vec::new()));
    assert_eq!(relative(b"/a"), Err(Unsafe::AbsolutePath));
    assert_eq!(relative(b"a/../b"), Err(Unsafe::ParentDir));
    assert_eq!(relative(b""), Err(Unsafe::InvalidName));
    assert_eq!(relative(b"a\0"), Err(Unsafe::InvalidName));
    assert_eq!(relative(b"..a/b.."), Ok(b"..a/b..".to_vec()));
}
