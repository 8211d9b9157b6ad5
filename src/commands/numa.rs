//! Which processors are near a GPU: a rank's thread there need not cross the machine for every launch.

use std::path::Path;

/// The processors of the NUMA node of the PCI device at this address, as `00000000:1b:00.0`; none if the system does not
/// say.
pub fn processors_near(pci: &str) -> Vec<usize> {
    near(Path::new("/sys"), pci).unwrap_or_default()
}

/// From Linux's description of itself: Documentation/ABI/testing/sysfs-bus-pci and sysfs-devices-node.
fn near(sys: &Path, pci: &str) -> Option<Vec<usize>> {
    // NVIDIA writes eight digits of the domain, and Linux four.
    let (domain, rest) = pci.split_once(':')?;
    let domain = u32::from_str_radix(domain, 16).ok()?;
    let device = sys.join(format!("bus/pci/devices/{domain:04x}:{}", rest.to_ascii_lowercase()));
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    // -1 where there are no nodes.
    let node: u32 = read(&device.join("numa_node"))?.trim().parse().ok()?;
    processors(&read(&sys.join(format!("devices/system/node/node{node}/cpulist")))?)
}

/// A list as `0-27,56-83`.
fn processors(list: &str) -> Option<Vec<usize>> {
    let mut all = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        all.extend(first.parse::<usize>().ok()?..=last.parse().ok()?);
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::{near, processors};

    #[test]
    fn processors_near_a_gpu_are_found() {
        let sys = tempfile::tempdir().expect("a folder");
        let file = |path: &str, text: &str| {
            let path = sys.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            std::fs::write(path, text).expect("a file");
        };
        file("bus/pci/devices/0000:1b:00.0/numa_node", "1\n");
        file("bus/pci/devices/0000:9a:00.0/numa_node", "-1\n");
        file("devices/system/node/node1/cpulist", "2-4,9\n");
        assert_eq!(near(sys.path(), "00000000:1B:00.0"), Some(vec![2, 3, 4, 9]));
        assert_eq!(near(sys.path(), "00000000:9A:00.0"), None);
        assert_eq!(near(sys.path(), "00000000:33:00.0"), None);
        assert_eq!(processors("0"), Some(vec![0]));
        assert_eq!(processors("0-"), None);
    }
}
