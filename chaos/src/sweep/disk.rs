//! A folder as a disk could hold it after a power cut.
//!
//! What POSIX promises, and no more: the bytes of a file are on disk once it was synced after they were
//! written; a name is, once its folder was synced after the name was made, moved or removed. All else may
//! be there, or not, or in part.

use crate::{
    random::Random,
    sweep::trace::{FileId, Step, Traced, is_nobodys},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The smallest part of a write that reaches a disk or does not.
const SECTOR_BYTES: u64 = 512;

/// What becomes of that which was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cut {
    /// Nothing of it is there.
    Lost,
    /// Of each file a beginning of what was written to it, and a beginning of the changes of names.
    Prefix,
    /// All names, and of the newest bytes of each file some sectors, the others zero.
    Torn,
    /// All of it: the process died, and the power did not go.
    Kept,
}

impl Cut {
    /// Those of a power cut.
    pub const ALL: [Cut; 3] = [Cut::Lost, Cut::Prefix, Cut::Torn];

    pub fn name(self) -> &'static str {
        match self {
            Cut::Lost => "lost",
            Cut::Prefix => "prefix",
            Cut::Torn => "torn",
            Cut::Kept => "kept",
        }
    }
}

#[derive(Clone, Debug)]
enum Change {
    Write { at: u64, bytes: Arc<[u8]> },
    SetLen(u64),
}

/// A file: what is on disk for sure, and what came after.
#[derive(Clone, Debug, Default)]
struct File {
    synced: Vec<u8>,
    /// With the number of its step.
    since: Vec<(usize, Change)>,
}

#[derive(Clone, Debug)]
enum Naming {
    Create(PathBuf, FileId),
    MakeDir(PathBuf),
    RemoveDir(PathBuf),
    Rename(PathBuf, PathBuf),
    Link(PathBuf, PathBuf),
    Remove(PathBuf),
}

impl Naming {
    /// The folder that has to be synced for it.
    fn folder(&self) -> Option<&Path> {
        match self {
            Naming::Create(path, _)
            | Naming::MakeDir(path)
            | Naming::RemoveDir(path)
            | Naming::Rename(_, path)
            | Naming::Link(_, path)
            | Naming::Remove(path) => path.parent(),
        }
    }
}

/// Names and folders.
#[derive(Clone, Debug, Default)]
struct Names {
    files: BTreeMap<PathBuf, FileId>,
    folders: BTreeSet<PathBuf>,
}

impl Names {
    fn apply(&mut self, naming: &Naming) {
        match naming {
            Naming::Create(path, file) => {
                self.files.insert(path.clone(), *file);
            }
            Naming::MakeDir(path) => {
                self.folders.insert(path.clone());
            }
            Naming::RemoveDir(path) => {
                self.folders.remove(path);
            }
            Naming::Rename(from, to) => {
                if let Some(file) = self.files.remove(from) {
                    self.files.insert(to.clone(), file);
                }
            }
            Naming::Link(from, to) => {
                if let Some(file) = self.files.get(from).copied() {
                    self.files.insert(to.clone(), file);
                }
            }
            Naming::Remove(path) => {
                self.files.remove(path);
            }
        }
    }
}

/// The disk at one moment.
#[derive(Clone, Debug)]
pub struct Disk {
    root: PathBuf,
    files: BTreeMap<FileId, File>,
    /// Those that are on disk for sure.
    names: Names,
    /// Changes of names that may not be, with the number of their step.
    since: Vec<(usize, Naming)>,
    steps: usize,
}

impl Disk {
    /// As it is before the trace: everything in the folder is on disk.
    pub fn before(root: &Path, traced: &Traced, contents: &Contents) -> Disk {
        let mut disk = Disk {
            root: root.to_owned(),
            files: BTreeMap::new(),
            names: Names::default(),
            since: Vec::new(),
            steps: 0,
        };
        for (path, file) in &traced.before {
            let synced = contents.files.get(path).cloned().unwrap_or_default();
            let since = Vec::new();
            disk.files.insert(*file, File { synced, since });
            disk.names.files.insert(path.clone(), *file);
        }
        disk.names.folders.clone_from(&contents.folders);
        disk
    }

    /// The next step happens.
    pub fn take(&mut self, step: &Step) {
        let number = self.steps;
        self.steps += 1;
        let mut name = |naming| self.since.push((number, naming));
        match step {
            Step::Create { path, file } => {
                self.files.insert(*file, File::default());
                name(Naming::Create(path.clone(), *file));
            }
            Step::MakeDir { path } => name(Naming::MakeDir(path.clone())),
            Step::RemoveDir { path } => name(Naming::RemoveDir(path.clone())),
            Step::Rename { from, to } => name(Naming::Rename(from.clone(), to.clone())),
            Step::Link { from, to } => name(Naming::Link(from.clone(), to.clone())),
            Step::Remove { path } => name(Naming::Remove(path.clone())),
            Step::Write { file, at, bytes } => {
                let (at, bytes) = (*at, Arc::clone(bytes));
                self.change(*file, number, Change::Write { at, bytes });
            }
            Step::SetLen { file, len } => self.change(*file, number, Change::SetLen(*len)),
            Step::Sync { file, begun } => {
                if let Some(file) = self.files.get_mut(file) {
                    let sure = file.since.partition_point(|(step, _)| step < begun);
                    for (_, change) in file.since.drain(..sure) {
                        apply(&mut file.synced, &change);
                    }
                }
            }
            Step::SyncDir { path, begun } => {
                let sure = |step: usize, naming: &Naming| {
                    step < *begun && naming.folder() == Some(path.as_path())
                };
                for (step, naming) in &self.since {
                    if sure(*step, naming) {
                        self.names.apply(naming);
                    }
                }
                self.since.retain(|(step, naming)| !sure(*step, naming));
            }
            Step::Said(_) => {}
        }
    }

    fn change(&mut self, file: FileId, number: usize, change: Change) {
        let file = self.files.entry(file).or_default();
        file.since.push((number, change));
    }

    /// Makes the folder as it may be after the power is cut now.
    pub fn rebuild(&self, cut: Cut, random: &mut Random, into: &Path) -> io::Result<()> {
        fs::create_dir_all(into)?;
        let mut names = self.names.clone();
        let kept = match cut {
            Cut::Lost => 0,
            Cut::Prefix => random.between(0, self.since.len() as u64) as usize,
            Cut::Torn | Cut::Kept => self.since.len(),
        };
        for (_, naming) in &self.since[..kept] {
            names.apply(naming);
        }
        let place = |path: &Path| {
            let below = path.strip_prefix(&self.root);
            into.join(below.expect("everything traced is below the root"))
        };
        for folder in &names.folders {
            // Whose own folder is gone is gone.
            if folder
                .parent()
                .is_some_and(|p| p == self.root || names.folders.contains(p))
            {
                fs::create_dir_all(place(folder))?;
            }
        }
        for (path, file) in &names.files {
            let to = place(path);
            if to.parent().is_some_and(Path::is_dir) && !is_nobodys(path) {
                fs::write(to, self.content(*file, cut, random))?;
            }
        }
        Ok(())
    }

    fn content(&self, file: FileId, cut: Cut, random: &mut Random) -> Vec<u8> {
        let Some(file) = self.files.get(&file) else {
            return Vec::new();
        };
        let mut bytes = file.synced.clone();
        match cut {
            Cut::Lost => {}
            Cut::Prefix => {
                let whole = random.between(0, file.since.len() as u64) as usize;
                for (_, change) in &file.since[..whole] {
                    apply(&mut bytes, change);
                }
                if let Some((_, Change::Write { at, bytes: rest })) = file.since.get(whole) {
                    let len = random.below(rest.len() as u64 + 1) as usize;
                    let bytes_kept = Arc::from(&rest[..len]);
                    apply(
                        &mut bytes,
                        &Change::Write {
                            at: *at,
                            bytes: bytes_kept,
                        },
                    );
                }
            }
            Cut::Kept => {
                for (_, change) in &file.since {
                    apply(&mut bytes, change);
                }
            }
            Cut::Torn => {
                for (_, change) in &file.since {
                    apply(&mut bytes, change);
                }
                for (_, change) in &file.since {
                    if let Change::Write { at, bytes: written } = change {
                        tear(&mut bytes, &file.synced, *at, written.len() as u64, random);
                    }
                }
            }
        }
        bytes
    }
}

/// Of the sectors that a write touched some are as before, or zero where nothing was.
fn tear(bytes: &mut [u8], synced: &[u8], at: u64, len: u64, random: &mut Random) {
    let first = at / SECTOR_BYTES;
    let last = (at + len).div_ceil(SECTOR_BYTES);
    for sector in first..last {
        if random.one_in(2) {
            continue;
        }
        let start = (sector * SECTOR_BYTES) as usize;
        let end = ((sector + 1) * SECTOR_BYTES).min(bytes.len() as u64) as usize;
        for (i, byte) in bytes.iter_mut().enumerate().take(end).skip(start) {
            *byte = synced.get(i).copied().unwrap_or(0);
        }
    }
}

fn apply(file: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write { at, bytes } => {
            let end = *at as usize + bytes.len();
            if file.len() < end {
                file.resize(end, 0);
            }
            file[*at as usize..end].copy_from_slice(bytes);
        }
        Change::SetLen(len) => file.resize(*len as usize, 0),
    }
}

/// What is in a folder before something works on it.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    files: BTreeMap<PathBuf, Vec<u8>>,
    folders: BTreeSet<PathBuf>,
}

impl Contents {
    pub fn read(root: &Path) -> io::Result<Contents> {
        let mut contents = Contents::default();
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    contents.folders.insert(entry.path());
                    folders.push(entry.path());
                } else {
                    contents.files.insert(entry.path(), fs::read(entry.path())?);
                }
            }
        }
        Ok(contents)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at_the_end(steps: &[Step], cut: Cut) -> BTreeMap<String, Vec<u8>> {
        at_the_end_of(1, steps, cut)
    }

    /// By chance of this seed.
    fn at_the_end_of(seed: u64, steps: &[Step], cut: Cut) -> BTreeMap<String, Vec<u8>> {
        let root = Path::new("/data");
        let traced = Traced {
            steps: Vec::new(),
            before: BTreeMap::new(),
        };
        let mut disk = Disk::before(root, &traced, &Contents::default());
        steps.iter().for_each(|step| disk.take(step));
        let into = tempfile::tempdir().expect("a folder");
        let mut random = Random::new(seed);
        disk.rebuild(cut, &mut random, into.path()).expect("builds");
        let contents = Contents::read(into.path()).expect("reads");
        let name = |path: &PathBuf| {
            path.strip_prefix(into.path())
                .expect("below")
                .display()
                .to_string()
        };
        contents
            .files
            .iter()
            .map(|(p, b)| (name(p), b.clone()))
            .collect()
    }

    fn create(name: &str, file: u32) -> Step {
        Step::Create {
            path: Path::new("/data").join(name),
            file: FileId(file),
        }
    }

    fn write(file: u32, at: u64, bytes: &[u8]) -> Step {
        Step::Write {
            file: FileId(file),
            at,
            bytes: Arc::from(bytes),
        }
    }

    fn sync(file: u32, begun: usize) -> Step {
        Step::Sync {
            file: FileId(file),
            begun,
        }
    }

    fn sync_dir(begun: usize) -> Step {
        Step::SyncDir {
            path: "/data".into(),
            begun,
        }
    }

    #[test]
    fn bytes_need_a_sync_of_the_file_and_names_one_of_the_folder() {
        let steps = [create("a", 0), write(0, 0, b"12"), sync(0, 2)];
        assert!(
            at_the_end(&steps, Cut::Lost).is_empty(),
            "nobody synced its name"
        );
        let steps = [
            create("a", 0),
            sync_dir(1),
            write(0, 0, b"12"),
            sync(0, 2),
            write(0, 2, b"34"),
            sync(0, 5),
        ];
        let found = at_the_end(&steps, Cut::Lost);
        assert_eq!(found["a"], b"1234".to_vec());
        let steps = [create("a", 0), sync_dir(1), write(0, 0, b"12"), sync(0, 2)];
        let found = at_the_end(&steps, Cut::Lost);
        assert_eq!(
            found["a"],
            Vec::<u8>::new(),
            "the sync began before the write"
        );
    }

    #[test]
    fn a_removed_name_comes_back_and_a_moved_one_is_where_it_was() {
        let moved = Step::Rename {
            from: "/data/a".into(),
            to: "/data/b".into(),
        };
        let removed = Step::Remove {
            path: "/data/b".into(),
        };
        let steps = [create("a", 0), sync_dir(1), moved, removed];
        assert!(at_the_end(&steps, Cut::Lost).contains_key("a"));
        assert!(at_the_end(&steps, Cut::Torn).is_empty(), "all names");
    }

    #[test]
    fn torn_sectors_are_as_before() {
        let mut steps = vec![
            create("a", 0),
            sync_dir(1),
            write(0, 0, &[1; 4096]),
            sync(0, 3),
        ];
        steps.push(write(0, 0, &[2; 8192]));
        let found = at_the_end(&steps, Cut::Torn);
        let found = &found["a"];
        assert_eq!(found.len(), 8192);
        let (old, new) = found.split_at(4096);
        let sectors = |part: &[u8]| part.chunks(512).map(|s| s[0]).collect::<BTreeSet<_>>();
        assert_eq!(sectors(old), BTreeSet::from([1, 2]));
        assert_eq!(sectors(new), BTreeSet::from([0, 2]));
    }

    #[test]
    fn a_name_is_sure_when_a_sync_of_its_folder_began_after_it() {
        let steps = [create("a", 0), create("b", 1), sync_dir(1)];
        let names = |cut| at_the_end(&steps, cut).into_keys().collect::<Vec<_>>();
        assert_eq!(names(Cut::Lost), ["a"]);
        assert_eq!(
            names(Cut::Kept),
            ["a", "b"],
            "the other one is not forgotten"
        );
        let of_another = Step::SyncDir {
            path: "/data/folder".into(),
            begun: 9,
        };
        assert!(at_the_end(&[create("a", 0), of_another], Cut::Lost).is_empty());
    }

    #[test]
    fn what_is_below_a_folder_needs_the_folder_and_a_link_is_a_second_name() {
        let path = PathBuf::from("/data/folder");
        let made = Step::MakeDir { path: path.clone() };
        let sync_folder = Step::SyncDir {
            path: path.clone(),
            begun: 9,
        };
        let inside = create("folder/a", 0);
        let steps = [made.clone(), inside.clone(), sync_folder.clone()];
        assert!(
            at_the_end(&steps, Cut::Lost).is_empty(),
            "nobody synced the folder's own name"
        );
        let steps = [made.clone(), inside, sync_folder, sync_dir(9)];
        assert!(at_the_end(&steps, Cut::Lost).contains_key("folder/a"));
        let removed = Step::RemoveDir { path };
        assert!(at_the_end(&[made, sync_dir(1), removed], Cut::Kept).is_empty());
        let link = Step::Link {
            from: "/data/a".into(),
            to: "/data/b".into(),
        };
        let found = at_the_end(&[create("a", 0), write(0, 0, b"12"), link], Cut::Kept);
        assert_eq!(
            found,
            BTreeMap::from(["a", "b"].map(|n| (n.to_owned(), b"12".to_vec())))
        );
    }

    #[test]
    fn of_a_prefix_every_beginning_is_possible_and_nothing_else() {
        let longer = Step::SetLen {
            file: FileId(0),
            len: 6,
        };
        let steps = [
            create("a", 0),
            sync_dir(1),
            write(0, 0, b"1"),
            sync(0, 3),
            write(0, 1, b"23"),
            longer,
            write(0, 1, b"x"),
        ];
        let possible = [&b"1"[..], b"12", b"123", b"123\0\0\0", b"1x3\0\0\0"];
        let seen: BTreeSet<Vec<u8>> = (0..400)
            .map(|seed| at_the_end_of(seed, &steps, Cut::Prefix)["a"].clone())
            .collect();
        assert_eq!(seen, possible.into_iter().map(<[u8]>::to_vec).collect());
        assert_eq!(at_the_end(&steps, Cut::Kept)["a"], possible[4]);
        assert_eq!(at_the_end(&steps, Cut::Lost)["a"], possible[0]);
        // And of names.
        let steps = [create("a", 0), create("b", 1)];
        let names = |seed| {
            let found = at_the_end_of(seed, &steps, Cut::Prefix);
            found.into_keys().collect::<Vec<_>>()
        };
        let seen: BTreeSet<Vec<String>> = (0..100).map(names).collect();
        let wanted = [&[][..], &["a"], &["a", "b"]];
        let wanted = wanted.map(|names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect());
        assert_eq!(seen, BTreeSet::from(wanted));
    }

    #[test]
    fn a_torn_write_touches_its_own_sectors_alone() {
        let steps = [
            create("a", 0),
            sync_dir(1),
            write(0, 0, &[1; 2048]),
            sync(0, 3),
            // The end of the second sector, and the beginning of the third.
            write(0, 1020, &[2; 8]),
        ];
        let mut seen = BTreeSet::new();
        for seed in 0..40 {
            let found = at_the_end_of(seed, &steps, Cut::Torn);
            let bytes = &found["a"];
            assert_eq!(bytes.len(), 2048);
            assert!(bytes[..1020].iter().chain(&bytes[1028..]).all(|b| *b == 1));
            let (second, third) = (&bytes[1020..1024], &bytes[1024..1028]);
            assert!(
                [second, third]
                    .iter()
                    .all(|part| part.iter().all(|b| *b == part[0]))
            );
            seen.insert((second[0], third[0]));
        }
        assert_eq!(seen, BTreeSet::from([(1, 1), (1, 2), (2, 1), (2, 2)]));
    }

    #[test]
    fn what_was_there_before_is_on_disk() {
        let before = tempfile::tempdir().expect("a folder");
        fs::create_dir(before.path().join("folder")).expect("created");
        fs::write(before.path().join("folder/a"), b"old").expect("written");
        let contents = Contents::read(before.path()).expect("reads");
        let traced = Traced {
            steps: Vec::new(),
            before: BTreeMap::from([(before.path().join("folder/a"), FileId(3))]),
        };
        let disk = Disk::before(before.path(), &traced, &contents);
        let into = tempfile::tempdir().expect("a folder");
        let mut random = Random::new(1);
        disk.rebuild(Cut::Lost, &mut random, into.path())
            .expect("builds");
        assert_eq!(
            fs::read(into.path().join("folder/a")).expect("reads"),
            b"old"
        );
    }
}
