"""unzip.py ARCHIVE MEMBER OUTPUT: writes one member of a zip archive, its checksum verified."""

import shutil
import sys
import zipfile

archive, member, output = sys.argv[1:]
with zipfile.ZipFile(archive) as wheel, wheel.open(member) as source, open(output, "wb") as target:
    shutil.copyfileobj(source, target, 1 << 20)
