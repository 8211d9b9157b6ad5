//! CPUs near a GPU. A rank's thread that runs on them launches kernels without crossing NUMA nodes.

use std::path::Path;

/// CPUs of the NUMA node of the PCI device at this address, such as `00000000:1b:00.0`. Empty if the system
/// does not say.
pub(super) fn nearby_cpus(pci: &str) -> Vec<usize> {
    cpus_of_node(Path::new("/sys"), pci).unwrap_or_default()
}

/// Reads sysfs: Linux, Documentation/ABI/testing/sysfs-bus-pci and sysfs-devices-node.
pub(super) fn cpus_of_node(sys: &Path, pci: &str) -> Option<Vec<usize>> {
    // NVIDIA writes eight digits of the domain, Linux writes four.
    let (domain, rest) = pci.split_once(':')?;
    let domain = u32::from_str_radix(domain, 16).ok()?;
    let device = sys.join(format!("bus/pci/devices/{domain:04x}:{}", rest.to_ascii_lowercase()));
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    // The file holds -1 on a machine without NUMA nodes.
    let node: u32 = read(&device.join("numa_node"))?.trim().parse().ok()?;
    parse_cpu_list(&read(&sys.join(format!("devices/system/node/node{node}/cpulist")))?)
}

/// Parses a list such as `0-27,56-83`.
pub(super) fn parse_cpu_list(list: &str) -> Option<Vec<usize>> {
    let mut all = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        all.extend(first.parse::<usize>().ok()?..=last.parse().ok()?);
    }
    Some(all)
}
