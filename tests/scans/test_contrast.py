"""The contrast of a series by its attributes and its name, as scanners of several vendors and languages write them."""

from pathlib import Path

import pytest
from tissnet_components.scans.contrast import OTHER, contrast_of
from tissnet_components.scans.dicom import Series

NAMES = {
    "t1": """
        t1_tse_tra | t1_mprage_sag_p2_iso | t1_tse_tra_nativ | t1_fl2d_tra_ohne_KM | T1 tra vor KM | T1 tra v. KM
        T1 tra o.KM | T1 AX SANS INJECTION | T1 AX SANS GADO | T1 avant injection | T1 SIN CONTRASTE | T1 SIN CIV
        T1 SENZA MDC | T1 PRE MDC | T1 SEM CONTRASTE | T1 PRÉ CONTRASTE | T1 S/C | T1 S/ CONTRASTE | T1 BLANCO
        T1 ZONDER CONTRAST | T1 bez kontrastu | T1 KONTRASTSIZ | T1 AX PRE | T1 AX PLAIN | AX T1 PRE GAD
        AX T1 NONCONTRAST | AX T1 UNENHANCED | AX T1 W/O | AX T1 WO CONTRAST | AX T1 WITHOUT | t1 non-contrast
        T1 no Gd | T1 KM- | T1 C- | T1 post-op | T1 POSTOP | T1 PRE OP | T1 post RT | sT1W_3D_TFE | T1W_SE | T1W_FFE
        AXT1 | 3DT1 | SAG 3D BRAVO | FSPGR 3D | MPRAGE | Ax T1 FLAIR | t1_vibe_fs_tra_dixon_W | t1_tirm_tra
        T1 in phase | T1W FE 3D | sub-01_T1w | T1 MPR tra""",
    "t1ce": """
        t1_mprage_sag_KM | T1 tra nach KM | T1 tra n. KM | T1 SE mit KM | T1 SE KM+ | t1_tfe_km | T1 MPRAGE POST
        T1_MPR_POSTGD | AX T1 POSTGAD | AX T1 POST FS | Ax T1 +C | AX T1 FS +C | T1 MPRAGE C+ | T1 C | T1 tra +
        T1 with contrast | AX T1 W CONTRAST | AX T1 WITH | AX T1 W/ GAD | AX T1 ENHANCED | t1c_tra | t1ce | T1-Gd
        T1 AX AVEC INJECTION | T1 AX INJ | T1 3D GADO | SAG T1 APRES INJECTION | T1 CON CONTRASTE | T1 CON CIV
        T1 TRA MDC | T1 DOPO MDC | T1 m.d.c. | T1 COM CONTRASTE | T1 PÓS CONTRASTE | T1 PÓS-GADOLÍNIO | T1 C/C
        T1 MET CONTRAST | T1 NA CONTRAST | T1 z kontrastem | T1 po kontraście | T1 KONTRASTLI | T1 İLAÇLI
        eT1W_3D_TFE_GADO | T1W_TSE +C | Ax 3D SPGR +C | Ax T1 FLAIR +C | T1 POSTOP GD | T1 pre-op gad | T1 KM - tra
        T1 non fatsat GAD""",
    "t2": """
        AX T2 | t2_tse_tra | t2_blade_tra | Ax T2 PROPELLER | AX T2 FRFSE | T2W_TSE | sT2W/TSE | T2W_DRIVE_IAC | T2 fs
        t2_space_sag_p2_iso | Sag CUBE T2 | t2_ci3d_tra_1.5mm | 3D FIESTA IAC | FIESTA-C | 3D bFFE | CISS 3D | T2WI
        T2-gewichtet transversal | T2 TRA ASSIALE | t2_haste_cor | T2 +C | GRE coil T2 TSE""",
    "flair": """
        t2_tirm_tra_dark-fluid | t2_space_dark-fluid_sag | AX T2 FLAIR | FLAIR LANG | FLAIR_longTR | FLAIR post gad
        3D_Brain_VIEW_FLAIR_SHC | Sag 3D CUBE FLAIR +C""",
    OTHER: """
        t2_fl2d_tra_hemo | Ax T2* GRE | T2_STAR | T2star | T2W_FFE | T2 GRADIENT | T2 EG | T2 ECO DE GRADIENTE
        T2-Stern | MEDIC T2 | t2_swi_tra | SWI_Images | mIP_Images(SW) | Pha_Images | eSWAN | SWIp | sVenBOLD | QSM
        T2 Map | T2map | T2_MAPPING | t2_relaxometry | T1_Images | carte T2 | mapa T2 | R2* map | T2 multi-echo
        ep2d_diff_3scan_trace_p2_ADC | DWI b1000 | DTI 64 dir | Difusión | Diffusie | Dyfuzja | DIFÜZYON | eADC
        ep2d_perf_RELCBF | T2 DSC | Perfusione T2 | t1_twist_DCE | T1 DYN | ASL 3D | TOF_3D_multi-slab | MRA COW
        T1 CE-MRA | 3D PC | T1 Venographie | MIP_TRA | t1_mprage_SUB | SUB T1 POST-PRE | T1 Subtraktion
        T1 SOUSTRACTION | T1 SOTTRAZIONE | T1 SUSTRACCIÓN | T1 subtração | localizer | localizador | Lokalizer
        localizzatore | 3-plane loc | SURVEY | repérage | AAHead_Scout_MPR | T1 localizer | pd_tse | T2 STIR COR
        T2 SAG C-SPINE | T1 POST minus PRE | T1rho | brain mask | FAT: Ax T2 IDEAL | t2gre | T1 time-of-flight
        T2 sag HWS | BOLD fMRI | PhoenixZIPReport | Screen Save | ASSET cal | T1 REAL IR
        t1_vibe_fs_tra_dixon_F | T1 out of phase | T1 pre and post | T1 W/WO""",
    None: "research 7 | AX FSE | t2_tirm_tra | PD+T2_tse | T1 T2",
}
GRE = {"ScanningSequence": "GR"}
SE = {"ScanningSequence": "SE"}
IR = {"ScanningSequence": "SE\\IR"}


def ms(echo: float, repetition: float, inversion: float | str = "") -> dict[str, str]:
    return {"EchoTime": str(echo), "RepetitionTime": str(repetition), "InversionTime": str(inversion)}


ATTRIBUTES = [
    # Siemens
    ("t2_tse_tra", SE | ms(96, 5200), "t2"),
    ("t2_tse3d_tra_v2_384", {"ScanningSequence": "SE", "SequenceVariant": "SK\\SP\\OSP"} | ms(121, 750), "t2"),
    ("t2_ci3d_tra_1.5mm_v2_448", {"ScanningSequence": "GR", "SequenceVariant": "SS\\OSP"} | ms(4.43, 9.95), "t2"),
    ("t1_fl3d_tra_gk_v1", {"ScanningSequence": "GR", "SequenceVariant": "SP"} | ms(4.76, 11), "t1"),
    ("t1_mpr_tra", {"ScanningSequence": "GR\\IR", "SequenceVariant": "SP\\MP\\OSP"} | ms(2.97, 1900, 1100), "t1"),
    ("t2_tirm_tra", IR | ms(94, 9000, 2500), "flair"),
    ("t2_tirm_cor", IR | ms(60, 4000, 160), OTHER),  # STIR
    ("t2_space_sag", IR | ms(388, 5000, 1800), "flair"),
    ("t2_tra", GRE | ms(19.9, 620), OTHER),  # T2*, whose star a software dropped
    ("", {"ScanningSequence": "EP\\SE"} | ms(90, 4000), OTHER),
    ("t2_tra", {"ImageType": "DERIVED\\PRIMARY\\DIFFUSION\\ADC\\ND"}, OTHER),
    ("t1_mprage", {"ImageType": "DERIVED\\PRIMARY\\SUB\\ND"}, OTHER),
    ("t1_vibe", {"ImageType": "ORIGINAL\\PRIMARY\\M\\DIXON\\FAT"}, OTHER),
    ("t2_fl3d", {"ImageType": "ORIGINAL\\PRIMARY\\P\\SWI\\ND"}, OTHER),
    ("pd+t2_tse_tra", SE | ms(101, 3400), "t2"),
    ("pd+t2_tse_tra", SE | ms(12, 3400), OTHER),
    # GE
    ("Ax T2", {"ScanningSequence": "RM"} | ms(102, 4500, 0), "t2"),
    ("Ax T1 FLAIR", {"ScanningSequence": "RM"} | ms(9.5, 2500, 860), "t1"),
    ("Ax FLAIR", {"ScanningSequence": "RM"} | ms(9.5, 2500, 860), "t1"),
    ("Ax T2 FLAIR", {"ScanningSequence": "SE\\IR"} | ms(120, 9000, 2250), "flair"),
    ("Sag CUBE", {"ScanningSequence": "SE"} | ms(90, 2500), "t2"),
    ("3D BRAVO", {"ScanningSequence": "GR", "SequenceVariant": "SS\\SP\\SK"} | ms(3.2, 8.2, 450), "t1"),
    ("FIESTA-C", {"ScanningSequence": "GR", "SequenceVariant": "SS\\SK"} | ms(2.1, 6.1), "t2"),
    ("Ax T2 GRE", GRE | ms(15, 500), OTHER),
    ("Apparent", {"ImageType": "DERIVED\\PRIMARY\\ADC"}, OTHER),
    ("Ax T2", {"ImageType": "DERIVED\\SECONDARY\\SCREEN SAVE\\OTHER"}, OTHER),
    ("3D MERGE", GRE | ms(20, 600), OTHER),
    # Philips
    ("T2W_TSE", {"ScanningSequence": "SE", "ImageType": "ORIGINAL\\PRIMARY\\M_SE\\M\\SE"} | ms(100, 3000), "t2"),
    ("T2W", {"ScanningSequence": "GR", "ImageType": "ORIGINAL\\PRIMARY\\M_FFE\\M\\FFE"} | ms(16, 550), OTHER),
    ("T2W", {"ImageType": "DERIVED\\PRIMARY\\T2 MAP\\M\\SE"}, OTHER),
    ("T2W", {"ImageType": "ORIGINAL\\PRIMARY\\PHASE MAP\\P\\FFE"}, OTHER),
    ("FLAIR_longTR", {"ScanningSequence": "IR"} | ms(125, 11000, 2800), "flair"),
    ("T1W_IR", {"ScanningSequence": "IR"} | ms(15, 2000, 800), "t1"),
    ("T1W_SE", SE | ms(12, 600), "t1"),
    ("brain", SE | ms(12, 600), "t1"),
    ("brain", {"DiffusionBValue": "1000"}, OTHER),
    ("sT1W_3D_TFE", GRE | ms(4.6, 9.9), "t1"),
    # Canon
    ("T2", {"ScanningSequence": "SE", "SequenceVariant": "SK"} | ms(105, 5500), "t2"),
    ("T2 AX", {"ScanningSequence": "GR"} | ms(20, 700), OTHER),
    ("T2 AX", GRE, OTHER),
    ("T2 CISS", GRE, "t2"),
    ("T2 3D", GRE | ms(2.4, 6), "t2"),
    ("FLAIR", {"ScanningSequence": "IR"} | ms(105, 10000, 2700), "flair"),
    ("TOF", {"AngioFlag": "Y"} | GRE | ms(3.4, 22), OTHER),
    ("head", {"AngioFlag": "Y"} | GRE | ms(3.4, 22), OTHER),
    # what contradicts itself, and what does not tell
    ("AX T1", SE | ms(100, 5000), OTHER),
    ("AX T2", SE | ms(12, 500), OTHER),
    ("", {"ProtocolName": "t1_se_tra"}, "t1"),
    ("", SE | ms(100, 4000), "t2"),
    ("", GRE | ms(3, 8), None),
    ("", {"EchoTime": "abc", "RepetitionTime": "1e999"}, None),
    ("T1", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, OTHER),
    ("T1", {"ComplexImageComponent": "PHASE"}, OTHER),
    ("T1", {"AcquisitionContrast": "DIFFUSION"}, OTHER),
]
AGENTS = [
    ("T1 AX SE", {"ContrastBolusAgent": "Gadovist"}, "t1ce"),
    ("T1 AX SE", {"ContrastBolusAgentSequence": "Gadobutrol"}, "t1ce"),
    ("T1 AX SE", {"ContrastBolusIngredient": "GADOLINIUM"}, "t1ce"),
    ("T1 AX SE", {"ContrastBolusAgent": "Gadovist", "ContrastBolusVolume": "0"}, "t1"),
    ("AX T1 PRE", {"ContrastBolusAgent": "Gadovist"}, "t1"),
    ("T1 pre and post", {"ContrastBolusAgent": "Gadovist"}, OTHER),
    ("3D FIESTA IAC", {"ContrastBolusAgent": "Gadovist"}, "t2"),
    *(
        ("T1", {"ContrastBolusAgent": none}, "t1")
        for none in ("NONE", "kein KM", "ohne", "sans", "NO CONTRAST", "N/A", "-")
    ),
]


def series(description: str, *headers: dict[str, str], modality: str = "MR") -> Series:
    return Series("1.2", modality, description, "P1", (Path("1.dcm"),), headers)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (" ".join(name.split()), contrast)
        for contrast, names in NAMES.items()
        for line in names.splitlines()
        for name in line.split(" | ")
        if name.strip()
    ],
)
def test_the_name_tells_the_contrast(name, expected):
    assert contrast_of(series(name)).contrast == expected


@pytest.mark.parametrize(("name", "header", "expected"), [*ATTRIBUTES, *AGENTS])
def test_attributes_come_before_the_name(name, header, expected):
    assert contrast_of(series(name, header)).contrast == expected


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (series("AX T2", {"EchoTime": "100"} | SE), "t2 by EchoTime 100 ms, ScanningSequence SE and its name"),
        (series("AX T2", {"EchoTime": "20"} | GRE), "its name says t2, but EchoTime 20 ms, ScanningSequence GR"),
        (series("", GRE | ms(20, 600)), "T2* by EchoTime 20 ms, RepetitionTime 600 ms, ScanningSequence GR"),
        (series("t1_mpr", {"ContrastBolusAgent": "Gd"}), "t1 by its name, with contrast agent by ContrastBolusAgent"),
        (series("T1 MAP"), "a map by its name"),
        (series("T1", {"ImageType": "DERIVED\\PRIMARY\\SUBTRACTION"}), "a subtraction by ImageType"),
        (series("head", modality="CT"), "CT images, not MR"),
    ],
)
def test_the_reason_is_told(found, reason):
    assert contrast_of(found).reason == reason


def test_several_echoes_or_orientations_in_one_series_are_no_scan_of_a_contrast():
    assert contrast_of(series("AX T2", ms(20, 3000), ms(100, 3000))).reason == "of several echoes, 20 to 100 ms"
    planes = [{"ImageOrientationPatient": axes} for axes in ("1\\0\\0\\0\\1\\0", "0\\1\\0\\0\\0\\-1")]
    assert contrast_of(series("AX T2", *planes)).reason == "slices of several orientations"
