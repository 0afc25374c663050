//! Config drive: a VFAT filesystem labelled `config-2` with the OpenStack metadata files.
//!
//! VFAT is Nova's `config_drive_format = vfat`; cloud-init and cloudbase-init find it by its label.

use std::io::{Cursor, Write};

use base::{Error, Result};
use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};

/// Builds the filesystem image from `(path, content)` pairs; directories are made as needed.
///
/// # Errors
/// Where the content does not fit into 64 MiB.
pub fn build(files: &[(String, Vec<u8>)]) -> Result<Vec<u8>> {
    let bytes: usize = files.iter().map(|(_, content)| content.len().next_multiple_of(4096) + 4096).sum();
    let size = (bytes + 1024 * 1024).next_multiple_of(1024 * 1024);
    if size > 64 * 1024 * 1024 {
        return Err(Error::bad_request("The config drive would be larger than 64 MiB."));
    }
    let io = |e: std::io::Error| Error::internal(format!("config drive: {e}"));
    let mut image = Cursor::new(vec![0_u8; size]);
    let options = FormatVolumeOptions::new()
        .volume_label(*b"config-2   ")
        .fat_type(FatType::Fat16)
        .bytes_per_cluster(512);
    fatfs::format_volume(&mut image, options)
        .or_else(|_| {
            let options = FormatVolumeOptions::new().volume_label(*b"config-2   ");
            fatfs::format_volume(&mut image, options)
        })
        .map_err(io)?;
    {
        let fs = FileSystem::new(&mut image, FsOptions::new()).map_err(io)?;
        for (path, content) in files {
            let mut dir = fs.root_dir();
            let mut parts = path.split('/').peekable();
            while let Some(part) = parts.next() {
                if parts.peek().is_some() {
                    dir = dir.create_dir(part).map_err(io)?;
                } else {
                    let mut file = dir.create_file(part).map_err(io)?;
                    file.truncate().map_err(io)?;
                    file.write_all(content).map_err(io)?;
                }
            }
        }
        fs.unmount().map_err(io)?;
    }
    Ok(image.into_inner())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn reads_back_with_its_label() {
        let big = vec![7_u8; 300_000];
        let image = build(&[
            ("openstack/latest/meta_data.json".into(), b"{}".to_vec()),
            ("openstack/latest/user_data".into(), big.clone()),
        ])
        .unwrap();
        let fs = FileSystem::new(Cursor::new(image), FsOptions::new()).unwrap();
        assert_eq!(fs.volume_label(), "config-2");
        let mut read = Vec::new();
        fs.root_dir().open_file("openstack/latest/user_data").unwrap().read_to_end(&mut read).unwrap();
        assert_eq!(read, big);
    }
}
