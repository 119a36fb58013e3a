//! Reports name the commit of the binary, wherever and with whatever it is built.

#[path = "../build.rs"]
#[allow(dead_code, reason = "cargo runs the rest")]
mod build;

use build::Repository;
use std::{path::Path, process::Command};

fn git(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .args(["-c", "user.name=a", "-c", "user.email=a@b.c"])
        .args(arguments)
        .current_dir(folder)
        .output()
        .expect("git");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout)
        .expect("UTF-8")
        .trim()
        .to_owned()
}

fn commit(folder: &Path) {
    git(folder, &["commit", "--quiet", "--allow-empty", "-m", "m"]);
}

fn found(folder: &Path) -> Repository {
    Repository::find(folder).expect("a repository")
}

fn is_that_of_git(folder: &Path) {
    let repository = found(folder);
    let expected = git(folder, &["rev-parse", "HEAD"]);
    let commit = repository.commit().expect("a commit");
    assert!(
        commit.len() == 7 && expected.starts_with(&commit),
        "{commit} {expected}"
    );
    let described = build::described(folder).expect("git is here");
    assert!(expected.starts_with(&described), "{described} {expected}");
    assert!(repository.told_by().iter().all(|file| file.exists()));
}

/// Whatever tells of the commit says something else after this.
fn is_told_of(folder: &Path, change: impl FnOnce()) {
    let read = |files: &[std::path::PathBuf]| {
        let each = files.iter().map(|file| match file.is_dir() {
            true => format!("{:?}", std::fs::read_dir(file).expect("a folder").count()),
            false => format!("{:?}", std::fs::read(file).expect("a file")),
        });
        each.collect::<Vec<_>>()
    };
    let files = found(folder).told_by();
    let before = read(&files);
    change();
    assert_ne!(read(&files), before, "{files:?}");
    is_that_of_git(folder);
}

#[test]
fn the_commit_is_found_in_a_clone_in_another_work_tree_and_among_packed_branches() {
    let dir = tempfile::tempdir().expect("a folder");
    let main = dir.path().join("main");
    std::fs::create_dir(&main).expect("created");
    git(&main, &["init", "--quiet", "--initial-branch", "main"]);
    commit(&main);
    is_that_of_git(&main);
    is_told_of(&main, || commit(&main));
    git(
        &main,
        &["worktree", "add", "--quiet", "-b", "a/b", "../other"],
    );
    let other = dir.path().join("other");
    is_told_of(&other, || commit(&other));
    assert_ne!(found(&main).commit(), found(&other).commit());
    git(&main, &["pack-refs", "--all"]);
    is_that_of_git(&main);
    is_told_of(&main, || commit(&main));
    is_told_of(&main, || {
        drop(git(&main, &["checkout", "--quiet", "--detach", "a/b"]));
    });
}

#[test]
fn without_a_repository_nothing_is_known() {
    let dir = tempfile::tempdir().expect("a folder");
    assert!(Repository::find(dir.path()).is_none());
    assert_eq!(build::described(dir.path()), None);
}
