//! What the system can still give: free memory, and the limits of the control groups that the process is in.

use std::path::{Path, PathBuf};

/// Memory the system can still give, in bytes, limits of control groups included; `None` where it does not tell.
///
/// A process may use no more than any group on the way from its own up to the root allows (cgroups(7)), whatever is free
/// besides: containers, Slurm and systemd set such limits at different heights.
pub fn available() -> Option<usize> {
    available_under(Path::new("/"))
}

/// A limit on memory that a control group sets.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct MemoryLimit {
    /// The group's folder.
    pub group: PathBuf,
    /// What it may use, in bytes.
    pub limit: usize,
    /// What is left of that, in bytes: file pages that the system gives back when asked are not counted as used.
    pub left: usize,
}

/// The control group that leaves this process the least, if it leaves less than the system has.
pub fn memory_limit() -> Option<MemoryLimit> {
    limit_under(Path::new("/"))
}

/// [`available`], with `proc` and the file systems of control groups below `root`.
fn available_under(root: &Path) -> Option<usize> {
    let system = system_under(root)?;
    Some(limit_under(root).map_or(system, |limit| limit.left))
}

fn limit_under(root: &Path) -> Option<MemoryLimit> {
    let system = system_under(root).unwrap_or(usize::MAX);
    let limits = groups(root).into_iter().filter_map(|group| group.limit());
    limits.min_by_key(|limit| limit.left).filter(|limit| limit.left < system)
}

/// What the whole machine has left.
fn system_under(root: &Path) -> Option<usize> {
    kib(&std::fs::read_to_string(root.join("proc/meminfo")).ok()?, "MemAvailable:")
}

/// The number of bytes behind `key` in a table of kilobytes, as proc(5) has them.
pub(crate) fn kib(text: &str, key: &str) -> Option<usize> {
    let line = text.lines().find(|l| l.starts_with(key))?;
    line.split_whitespace().nth(1)?.parse::<usize>().ok()?.checked_mul(1024)
}

/// A control group's folder, and the names of its files.
struct Group {
    dir: PathBuf,
    is_v2: bool,
}

impl Group {
    /// Its limit; `None` where it has none.
    fn limit(&self) -> Option<MemoryLimit> {
        let [limit, usage] = match self.is_v2 {
            true => ["memory.max", "memory.current"],
            false => ["memory.limit_in_bytes", "memory.usage_in_bytes"],
        };
        // Version 2 writes `max` for no limit, version 1 a number beyond any memory, which decides nothing either.
        let limit: usize = self.read(limit)?.trim().parse().ok()?;
        let used: usize = self.read(usage).and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let left = limit.saturating_sub(used.saturating_sub(self.cached()));
        Some(MemoryLimit { group: self.dir.clone(), limit, left })
    }

    /// File pages counted as used, which the system gives back when asked.
    fn cached(&self) -> usize {
        let name = if self.is_v2 { "inactive_file " } else { "total_inactive_file " };
        let stat = self.read("memory.stat").unwrap_or_default();
        stat.lines().find_map(|l| l.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0)
    }

    fn read(&self, file: &str) -> Option<String> {
        std::fs::read_to_string(self.dir.join(file)).ok()
    }
}

/// The groups that account for this process's memory, its own and all above it, as far as they are mounted.
fn groups(root: &Path) -> Vec<Group> {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default();
    let (own, mounts) = (read("proc/self/cgroup"), read("proc/self/mountinfo"));
    let mut groups = Vec::new();
    for line in own.lines() {
        // `0::/path` is version 2, `N:memory,...:/path` version 1.
        let mut fields = line.splitn(3, ':');
        let (Some(number), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let is_v2 = number == "0" && controllers.is_empty();
        if !is_v2 && !controllers.split(',').any(|c| c == "memory") {
            continue;
        }
        for mount in mounts.lines().filter_map(|line| Mount::parse(line, is_v2)) {
            let Some(below) = mount.below(path) else { continue };
            let top = root.join(mount.point.trim_start_matches('/'));
            let own = top.join(below);
            let up = own.ancestors().take_while(|dir| dir.starts_with(&top));
            groups.extend(up.map(|dir| Group { dir: dir.to_path_buf(), is_v2 }));
            break;
        }
    }
    groups
}

/// Where a hierarchy of control groups is mounted.
struct Mount {
    /// The group that the mount point shows.
    shown: String,
    point: String,
}

impl Mount {
    /// Reads a line of `/proc/self/mountinfo` (proc(5)), if it mounts the memory controller.
    fn parse(line: &str, is_v2: bool) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let kind = right.next()?;
        let is_memory = match is_v2 {
            true => kind == "cgroup2",
            false => kind == "cgroup" && right.nth(1)?.split(',').any(|option| option == "memory"),
        };
        let mut left = left.split(' ').skip(3);
        let (shown, point) = (unescaped(left.next()?), unescaped(left.next()?));
        is_memory.then_some(Self { shown, point })
    }

    /// The path of the group `path` below the mount point; `None` where the mount shows another part of the tree. In a name
    /// space of its own a process is told `/`, or a path that leads out of it, and what is mounted is its own group.
    fn below<'a>(&self, path: &'a str) -> Option<&'a str> {
        if path == "/" || path.starts_with("/..") {
            return Some("");
        }
        let rest = match self.shown.as_str() {
            "/" => path,
            shown => path.strip_prefix(shown).filter(|rest| rest.is_empty() || rest.starts_with('/'))?,
        };
        Some(rest.trim_start_matches('/'))
    }
}

/// Spaces and the like are written as three octal digits behind a backslash.
fn unescaped(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_string(), |text, (code, is)| text.replace(code, is))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: usize = 1 << 30;

    /// A system with 8 GiB free, a process in `cgroup`, `mounts`, and files of control groups.
    fn system(cgroup: &str, mounts: &str, files: &[(&str, &str)]) -> Option<usize> {
        let (available, limit) = told(cgroup, mounts, files);
        assert!(limit.is_none_or(|limit| Some(limit.left) == available && limit.limit >= limit.left));
        available
    }

    fn told(cgroup: &str, mounts: &str, files: &[(&str, &str)]) -> (Option<usize>, Option<MemoryLimit>) {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("proc/meminfo", "MemTotal:       16777216 kB\nMemAvailable:    8388608 kB\n");
        write("proc/self/cgroup", cgroup);
        write("proc/self/mountinfo", mounts);
        files.iter().for_each(|(path, text)| write(path, text));
        (available_under(root.path()), limit_under(root.path()))
    }

    const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n";
    const V1: &str = "29 23 0:25 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                      31 23 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";

    #[test]
    fn the_smallest_limit_on_the_way_up_counts() {
        assert_eq!(system("0::/", V2, &[]), Some(8 * GIB));
        let job = "sys/fs/cgroup/slurm/job_7";
        let files = [
            (&*format!("{job}/step_0/memory.max"), "max\n"),
            (&*format!("{job}/memory.max"), "3221225472\n"),
            (&*format!("{job}/memory.current"), "2147483648\n"),
            (&*format!("{job}/memory.stat"), "anon 5\ninactive_file 1073741824\nactive_file 3\n"),
            ("sys/fs/cgroup/slurm/memory.max", "5368709120\n"),
        ];
        // 3 GiB, of which 2 are used, half of that by files that can go.
        assert_eq!(system("0::/slurm/job_7/step_0\n", V2, &files), Some(2 * GIB));
        let (_, limit) = told("0::/slurm/job_7/step_0\n", V2, &files);
        let limit = limit.unwrap();
        assert!(limit.group.ends_with(job) && limit.limit == 3 * GIB, "{limit:?}");
        assert_eq!(told("0::/", V2, &[]).1, None);
        assert_eq!(system("0::/other\n", V2, &files), Some(8 * GIB));
        assert_eq!(system("0::/slurm/other\n", V2, &files), Some(5 * GIB));
    }

    #[test]
    fn version_1_has_other_names() {
        let own = "9:memory:/t\n4:cpu,cpuacct:/elsewhere\n0::/init.scope\n";
        let files = [
            ("sys/fs/cgroup/memory/t/memory.limit_in_bytes", "419430400\n"),
            ("sys/fs/cgroup/memory/t/memory.usage_in_bytes", "104857600\n"),
            ("sys/fs/cgroup/memory/t/memory.stat", "inactive_file 1\ntotal_inactive_file 0\n"),
            // No limit, in the words of version 1.
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ];
        assert_eq!(system(own, V1, &files), Some(300 << 20));
    }

    #[test]
    fn a_container_sees_its_own_group_at_the_mount_point() {
        let limit = [("sys/fs/cgroup/memory.max", "1073741824\n")];
        assert_eq!(system("0::/\n", V2, &limit), Some(GIB));
        assert_eq!(system("0::/../../docker/abc\n", V2, &limit), Some(GIB));
        let shown = V2.replace(" / /sys", " /docker/abc /sys");
        assert_eq!(system("0::/docker/abc\n", &shown, &limit), Some(GIB));
        assert_eq!(system("0::/docker/abcd\n", &shown, &limit), Some(8 * GIB));
        let inner = [("sys/fs/cgroup/app/memory.max", "536870912\n")];
        assert_eq!(system("0::/docker/abc/app\n", &shown, &inner), Some(GIB / 2));
    }

    #[test]
    fn a_group_that_is_full_leaves_nothing() {
        let files = [("sys/fs/cgroup/memory.max", "1000\n"), ("sys/fs/cgroup/memory.current", "2000\n")];
        assert_eq!(system("0::/\n", V2, &files), Some(0));
        assert_eq!(system("nonsense", "more - nonsense", &[]), Some(8 * GIB));
    }
}
