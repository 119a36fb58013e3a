//! Names the commit that this is built from, for reports. Git is asked if it is there, and its files are read
//! if not; without a repository nothing is known. Runs again when another commit is checked out, or something is staged.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let folder = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let repository = folder.parent().and_then(Repository::find);
    if let Some(repository) = &repository {
        for file in repository.told_by() {
            println!("cargo::rerun-if-changed={}", file.display());
        }
    }
    let read = || repository.as_ref().and_then(Repository::commit);
    let commit = described(&folder).or_else(read);
    let commit = commit.unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=HUTONG_BENCH_COMMIT={commit}");
}

/// What git says, if it is installed: with a mark if something was not committed.
pub fn described(folder: &Path) -> Option<String> {
    let output = Command::new("git")
        .args(["describe", "--always", "--dirty"])
        .current_dir(folder)
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let text = text.trim();
    (output.status.success() && !text.is_empty()).then(|| text.to_owned())
}

/// Digits of a commit, as git shows it.
const SHORT: usize = 7;

#[derive(Debug)]
pub struct Repository {
    /// The folder with `HEAD`: of this work tree alone, if there are several.
    own: PathBuf,
    /// The folder with the branches: of all of them.
    common: PathBuf,
}

impl Repository {
    /// Of the work tree in this folder.
    pub fn find(folder: &Path) -> Option<Repository> {
        let git = folder.join(".git");
        let own = match fs::read_to_string(&git) {
            Ok(text) => folder.join(text.strip_prefix("gitdir:")?.trim()),
            Err(_) => git,
        };
        let common = match fs::read_to_string(own.join("commondir")) {
            Ok(text) => own.join(text.trim()),
            Err(_) => own.clone(),
        };
        own.join("HEAD")
            .is_file()
            .then_some(Repository { own, common })
    }

    /// The name of the branch that is checked out; none when it is a commit.
    fn branch(&self) -> Option<String> {
        let head = fs::read_to_string(self.own.join("HEAD")).ok()?;
        Some(head.strip_prefix("ref:")?.trim().to_owned())
    }

    /// What changes when another commit is checked out, or something is staged. Only what is there: cargo takes what is missing
    /// for changed each time.
    pub fn told_by(&self) -> Vec<PathBuf> {
        let mut files = vec![self.own.join("HEAD")];
        if let Some(branch) = self.branch() {
            let file = self.common.join(branch);
            if file.is_file() {
                files.push(file);
            } else {
                // It may be among the packed ones, and the next commit makes a file of it.
                files.push(self.common.join("packed-refs"));
                let folder = file.ancestors().skip(1).find(|folder| folder.is_dir());
                files.extend(folder.map(Path::to_owned));
            }
        }
        // What was not committed when this was built may be undone.
        files.push(self.own.join("index"));
        files.retain(|file| file.exists());
        files
    }

    pub fn commit(&self) -> Option<String> {
        let read = |file: PathBuf| fs::read_to_string(file).ok();
        let hash = match self.branch() {
            None => read(self.own.join("HEAD"))?,
            Some(branch) => match read(self.common.join(&branch)) {
                Some(hash) => hash,
                None => {
                    let packed = read(self.common.join("packed-refs"))?;
                    let mut lines = packed.lines().filter_map(|line| line.split_once(' '));
                    lines.find(|(_, name)| *name == branch)?.0.to_owned()
                }
            },
        };
        hash.get(..SHORT).map(str::to_owned)
    }
}
