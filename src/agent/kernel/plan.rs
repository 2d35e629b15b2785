//! From a kernel's record to the container that it is to be.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use meshwork_identity::NodeId;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::record::Record;
use crate::backend::{Bind, Plan};
use crate::config::Bounds;
use crate::labels;

/// Makes the kernel's folders and says what its container is to be. `real` tells whether its
/// devices exist. Blocks on the disk.
pub(crate) fn plan(
    record: &Record,
    node: &NodeId,
    volumes: &Path,
    bounds: &Bounds,
    real: bool,
) -> std::io::Result<Plan> {
    let mounts = record.spec.mounts.iter().map(|mount| {
        Ok(Bind {
            source: volume(volumes, &record.owner, &mount.volume)?,
            target: mount.target.clone(),
            read_only: mount.read_only,
        })
    });
    let uuids = record.allocation.gpus.iter().map(|g| g.uuid.clone());
    Ok(Plan {
        name: record.container(node),
        image: record.spec.image.clone(),
        entrypoint: record.spec.entrypoint.clone(),
        command: record.spec.command.clone(),
        env: environment(record),
        labels: labels::write(record, node),
        workdir: record.spec.workdir.clone(),
        mounts: mounts.collect::<std::io::Result<_>>()?,
        cpus: record.allocation.cpus.clone(),
        cpu_millis: record.allocation.cpu_millis,
        mem: record.allocation.mem,
        shm: record.spec.resources.shm,
        pids: bounds.pids,
        log_bytes: bounds.log_bytes,
        nvidia: if real { uuids.collect() } else { Vec::new() },
    })
}

/// The user's variables, and ours in place of those of the same name: programs do not agree which
/// of two counts.
fn environment(record: &Record) -> BTreeMap<String, String> {
    let own = [
        ("MESHWORK_KERNEL_ID", record.kernel.to_string()),
        ("MESHWORK_SESSION_ID", record.session.to_string()),
        ("BACKENDAI_KERNEL_ID", record.kernel.to_string()),
        ("BACKENDAI_KERNEL_IMAGE", record.spec.image.clone()),
        ("BACKENDAI_SESSION_ID", record.session.to_string()),
        ("BACKENDAI_CLUSTER_SIZE", "1".into()),
        ("BACKENDAI_CLUSTER_ROLE", "main".into()),
        ("BACKENDAI_CLUSTER_IDX", "1".into()),
        ("BACKENDAI_CLUSTER_HOST", "main1".into()),
    ];
    let mut env = record.spec.env.clone();
    env.extend(
        own.into_iter()
            .chain(devices(record))
            .map(|(k, v)| (k.to_owned(), v)),
    );
    env
}

/// What programs read to find their GPUs.
fn devices(record: &Record) -> Vec<(&'static str, String)> {
    let gpus = &record.allocation.gpus;
    if gpus.is_empty() {
        // Where NVIDIA's runtime is Docker's default, CUDA images ask for every device; this is
        // how to give none.
        return vec![("NVIDIA_VISIBLE_DEVICES", "void".into())];
    }
    let join = |texts: Vec<String>| texts.join(",");
    let uuids = join(gpus.iter().map(|g| g.uuid.clone()).collect());
    // Position in the container and MiB, as Backend.AI's images read it.
    let config = gpus
        .iter()
        .enumerate()
        .map(|(i, g)| format!("{i}:{}", g.vram >> 20))
        .collect();
    vec![
        ("NVIDIA_VISIBLE_DEVICES", uuids.clone()),
        ("CUDA_VISIBLE_DEVICES", uuids),
        (
            "HIP_VISIBLE_DEVICES",
            join((0..gpus.len()).map(|i| i.to_string()).collect()),
        ),
        ("GPU_COUNT", gpus.len().to_string()),
        ("N_GPUS", gpus.len().to_string()),
        ("GPU_MODEL_NAME", gpus[0].model.clone()),
        ("GPU_CONFIG", join(config)),
    ]
}

/// The folder of a volume, made when it is new. Each step refuses links, so that no name leads out
/// of the agent's own folder.
fn volume(root: &Path, owner: &NodeId, name: &str) -> std::io::Result<PathBuf> {
    let owner = owner.to_string();
    let private = Mode::RWXU;
    rustix::fs::mkdir(root, private).or_else(exists)?;
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::open(root, flags, Mode::empty())?;
    rustix::fs::mkdirat(&dir, &owner, private).or_else(exists)?;
    let dir = rustix::fs::openat(&dir, &owner, flags, Mode::empty())?;
    // Whoever the image's user is may write here; others of the host stop at the folder above.
    let made = rustix::fs::mkdirat(&dir, name, private);
    let folder = rustix::fs::openat(&dir, name, flags, Mode::empty())?;
    match made {
        Ok(()) => rustix::fs::fchmod(&folder, Mode::RWXU | Mode::RWXG | Mode::RWXO)?,
        Err(error) => exists(error)?,
    }
    Ok(root.join(owner).join(name))
}

fn exists(error: Errno) -> Result<(), Errno> {
    if error == Errno::EXIST {
        Ok(())
    } else {
        Err(error)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use meshwork_identity::Identity;
    use meshwork_proto::slots::GpuGrant;

    use super::*;
    use crate::kernel::record::tests::record;

    #[test]
    fn volumes_stay_below_their_folder() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("volumes");
        let owner = Identity::from_seed(&[1; 32]).node_id();
        let path = volume(&root, &owner, "code").unwrap();
        assert_eq!(path, root.join(owner.to_string()).join("code"));
        let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!(
            (mode(&root), mode(path.parent().unwrap()), mode(&path)),
            (0o700, 0o700, 0o777)
        );
        std::fs::write(path.join("kept"), "x").unwrap();
        assert_eq!(volume(&root, &owner, "code").unwrap(), path);
        assert!(path.join("kept").exists());

        symlink("/etc", root.join(owner.to_string()).join("bad")).unwrap();
        assert!(volume(&root, &owner, "bad").is_err());
        let other = Identity::from_seed(&[2; 32]).node_id();
        symlink("/etc", root.join(other.to_string())).unwrap();
        assert!(volume(&root, &other, "code").is_err());
    }

    #[test]
    fn the_agent_has_the_last_word_on_devices_and_names() {
        let mut record = record(1);
        record.spec.env = BTreeMap::from([
            ("NVIDIA_VISIBLE_DEVICES".to_owned(), "all".to_owned()),
            ("BACKENDAI_KERNEL_ID".to_owned(), "forged".to_owned()),
            ("A".to_owned(), "1".to_owned()),
        ]);
        let env = environment(&record);
        assert_eq!(env["NVIDIA_VISIBLE_DEVICES"], "void");
        assert_eq!(env["BACKENDAI_KERNEL_ID"], record.kernel.to_string());
        assert_eq!(env["A"], "1");
        for index in 0..2 {
            record.allocation.gpus.push(GpuGrant {
                index: index + 4,
                uuid: format!("GPU-{index}"),
                model: "A100".into(),
                vram: 80 << 30,
            });
        }
        let env = environment(&record);
        assert_eq!(env["NVIDIA_VISIBLE_DEVICES"], "GPU-0,GPU-1");
        assert_eq!(env["CUDA_VISIBLE_DEVICES"], "GPU-0,GPU-1");
        assert_eq!(env["HIP_VISIBLE_DEVICES"], "0,1");
        assert_eq!(env["GPU_CONFIG"], "0:81920,1:81920");
        assert_eq!(env["GPU_COUNT"], "2");
    }
}
