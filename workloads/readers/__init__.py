"""Readers of recorded traces, one format a file. ``FORMATS`` lists them in the order in which they are tried."""

from pbench.workloads.readers.azure import AZURE
from pbench.workloads.readers.bailian import BAILIAN
from pbench.workloads.readers.burstgpt import BURSTGPT
from pbench.workloads.readers.format import Format
from pbench.workloads.readers.mooncake import MOONCAKE
from pbench.workloads.readers.native import NATIVE
from pbench.workloads.readers.sharegpt import SHAREGPT

FORMATS: tuple[Format, ...] = (NATIVE, AZURE, BAILIAN, MOONCAKE, BURSTGPT, SHAREGPT)
