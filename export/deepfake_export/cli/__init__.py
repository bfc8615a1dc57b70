"""The commands around export: `export`, `build-engines`, `repository`, `convert-meta-model`, `demo-checkpoint`."""
