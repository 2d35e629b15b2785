//! The key store, on a real file system.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
};

use meshwork_identity::{
    Identity, KeyStoreError, SecretFile, load_identity, load_or_create_identity,
};
use tempfile::TempDir;

const SEED: [u8; 32] = [0x41; 32];

/// A folder, and the key file that was made in it.
fn store() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data/identity.key");
    load_or_create_identity(&path, &SEED).unwrap();
    (folder, path)
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn a_key_is_made_once_and_kept() {
    let (_folder, path) = store();
    let expected = Identity::from_seed(&SEED).node_id();
    assert_eq!(load_identity(&path).unwrap().node_id(), expected);
    let again = load_or_create_identity(&path, &[2; 32]).unwrap();
    assert_eq!(again.node_id(), expected, "the new seed is not used");
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    let names: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().collect();
    assert_eq!(names.len(), 1, "nothing temporary is left");
}

#[test]
fn a_key_that_others_can_reach_is_refused_with_the_fix() {
    let (_folder, path) = store();
    for refused in [0o644, 0o640, 0o604, 0o660, 0o610, 0o601] {
        set_mode(&path, refused);
        let error = load_or_create_identity(&path, &SEED).unwrap_err();
        assert!(matches!(error, KeyStoreError::Permissions { mode, .. } if mode == refused));
        let text = error.to_string();
        assert!(
            text.contains(&format!("chmod 600 {}", path.display())),
            "{text}"
        );
        assert!(text.contains(&format!("{refused:04o}")), "{text}");
    }
    for accepted in [0o600, 0o400] {
        set_mode(&path, accepted);
        assert!(load_identity(&path).is_ok());
    }
}

#[test]
fn another_users_key_is_refused() {
    let (_folder, path) = store();
    // Root gives its file away; anyone else takes a file of root's.
    let foreign = if fs::metadata(&path).unwrap().uid() == 0 {
        chown(&path, Some(12_345), None).unwrap();
        path
    } else {
        PathBuf::from("/etc/passwd")
    };
    let error = load_identity(&foreign).unwrap_err();
    assert!(matches!(error, KeyStoreError::Owner { .. }), "{error}");
}

#[test]
fn links_and_folders_are_refused() {
    let (folder, path) = store();
    let link = folder.path().join("link");
    symlink(&path, &link).unwrap();
    let dangling = folder.path().join("dangling");
    symlink(folder.path().join("nowhere"), &dangling).unwrap();
    for not_a_file in [&link, &dangling, &folder.path().to_owned()] {
        let error = load_or_create_identity(not_a_file, &SEED).unwrap_err();
        assert!(matches!(error, KeyStoreError::NotAFile { .. }), "{error}");
    }
    assert!(!folder.path().join("nowhere").exists());
}

#[test]
fn what_is_no_key_is_refused() {
    let (_folder, path) = store();
    let good = fs::read_to_string(&path).unwrap();
    for (content, large) in [
        (String::new(), false),
        (good.replace("v1", "v2"), false),
        (good.trim_end().to_uppercase(), false),
        (format!("{good}\n"), false),
        (good[..good.len() - 2].to_owned(), false),
        (good.repeat(9), true),
    ] {
        fs::write(&path, &content).unwrap();
        match load_identity(&path).unwrap_err() {
            KeyStoreError::TooLarge { .. } => assert!(large),
            KeyStoreError::NotAKey { .. } => assert!(!large),
            other => panic!("{other}"),
        }
    }
    fs::remove_file(&path).unwrap();
    let error = load_identity(&path).unwrap_err();
    assert!(matches!(error, KeyStoreError::Io { .. }), "{error}");
}

#[test]
fn of_many_makers_one_wins() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("identity.key");
    let ids: Vec<_> = std::thread::scope(|scope| {
        let path = &path;
        let make = |n: u8| scope.spawn(move || load_or_create_identity(path, &[n; 32]).unwrap());
        let makers: Vec<_> = (0..8).map(make).collect();
        makers
            .into_iter()
            .map(|maker| maker.join().unwrap().node_id())
            .collect()
    });
    let kept = load_identity(&path).unwrap().node_id();
    assert!(ids.iter().all(|id| *id == kept));
}

#[test]
fn secret_files_are_created_once_and_replaced_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("psk");
    let file = SecretFile::new(&path);
    assert!(!file.exists().unwrap());
    assert!(file.create(b"one").unwrap());
    assert!(!file.create(b"two").unwrap());
    assert_eq!(**file.read(3).unwrap(), *b"one");
    assert!(matches!(
        file.read(2),
        Err(KeyStoreError::TooLarge { max: 2, .. })
    ));
    file.replace(b"three").unwrap();
    assert_eq!(**file.read(64).unwrap(), *b"three");
    assert_eq!(mode(&path), 0o600);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn no_error_and_no_debug_output_shows_the_key() {
    let (_folder, path) = store();
    let identity = load_identity(&path).unwrap();
    let encoded = fs::read_to_string(&path).unwrap();
    let seed = encoded.trim_end().rsplit(' ').next().unwrap();
    fs::write(&path, encoded.replace("meshwork", "mashwork")).unwrap();
    let error = load_identity(&path).unwrap_err();
    for shown in [format!("{identity:?}"), format!("{error:?} {error}")] {
        assert!(!shown.contains(&seed[..8]), "{shown}");
        assert!(!shown.contains("65, 65"), "{shown}");
    }
}
