#!/usr/bin/env bash
# The long training of T, in two stages. Ctrl-C stops it; run it again to go on.
# It needs data/camvid, data/camvid_full, and what this writes:
#   python experiments/teacher_labels.py STREETS LABELMEFACADE data/streets
set -euo pipefail

stage() {  # NAME OPTION...
    local folder=runs/$1
    shift
    if [ -f "$folder/last.pth" ]; then
        bssnet-zoo train --resume "$folder"
    else
        bssnet-zoo train --recipe camvid_720x960 --data camvid:data/camvid --val-split val --precision bfloat16 \
            --teacher-labels data/streets/teacher --teacher-weight 0.3 --crop-size 544x736 --scale-range 0.5 2.0 \
            --checkpoint-every 50 --output "$folder" "$@"
    fi
}

# all streets: as many images as 41 epochs of CamVid have, a third of them CamVid's
stage streets --more-data camvid:data/camvid_full camvid:data/streets/labelmefacade camvid:data/streets/unlabelled \
    --init street --iterations 2400 --warmup-iterations 100 --validate-every 3
# CamVid alone, with the teacher's maps beside its labels
stage camvid --more-data camvid:data/camvid_full --init runs/streets/best.safetensors --epochs 100 --validate-every 5
